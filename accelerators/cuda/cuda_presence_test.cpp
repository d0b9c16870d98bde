#include "accelerators/cuda/cuda_presence.h"

#include <fstream>

#include <unistd.h>

#include "tests/support/catch.h"

namespace {

// A folder that stands for /dev.
class DeviceNodes {
 public:
  explicit DeviceNodes(const std::vector<std::string>& names) {
    for (const auto& name : names) std::ofstream(path_ / name) << "";
  }
  ~DeviceNodes() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  static std::filesystem::path make() {
    auto path = std::filesystem::temp_directory_path() / ("fabric_dev_" + std::to_string(getpid()));
    std::filesystem::create_directories(path);
    return path;
  }
  std::filesystem::path path_ = make();
};

fabric::CudaAccelerator::Presence find(const std::filesystem::path& dev, std::map<std::string, std::string> env = {},
                                       bool driver = true, bool plugin = true) {
  return fabric::find_cuda(fabric::MapEnv(std::move(env)), dev, driver, plugin);
}

}  // namespace

TEST_CASE("GPUs are counted by their device nodes", "[cuda]") {
  DeviceNodes dev({"nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"});
  CHECK(find(dev.path()).devices == 3);
  CHECK(find(dev.path()).reason.empty());
  CHECK(find(dev.path() / "absent").devices == 0);
}

TEST_CASE("GPUs under WSL have one node", "[cuda]") {
  DeviceNodes dev({"dxg"});
  CHECK(find(dev.path()).devices == 1);
}

TEST_CASE("CUDA_VISIBLE_DEVICES narrows the GPUs by CUDA's rule", "[cuda]") {
  DeviceNodes dev({"nvidia0", "nvidia1", "nvidia2"});
  auto count = [&](const char* visible) { return find(dev.path(), {{"CUDA_VISIBLE_DEVICES", visible}}).devices; };
  CHECK(count("1") == 1);
  CHECK(count("2, 0") == 2);
  CHECK(count("0,7,1") == 1);
  CHECK(count("0,-1,1") == 1);
  CHECK(count("0,0") == 0);
  CHECK(count("-1") == 0);
  CHECK(count("") == 0);
  CHECK(count("GPU-8932f937,GPU-1a2b") == 2);
  CHECK(count("MIG-GPU-8932f937/1/2") == 1);
}

TEST_CASE("the reason why there is no GPU says what to do", "[cuda]") {
  using Catch::Contains;
  DeviceNodes dev({"nvidia0"});
  CHECK_THAT(find(dev.path() / "absent").reason, Contains("no GPU on this machine"));
  CHECK_THAT(find(dev.path(), {}, false).reason, Contains("libcuda.so.1"));
  CHECK_THAT(find(dev.path(), {{"CUDA_VISIBLE_DEVICES", "-1"}}).reason, Contains("CUDA_VISIBLE_DEVICES='-1' hides"));
  CHECK_THAT(find(dev.path(), {}, true, false).reason, Contains("libtorchfabric_cuda.so"));
}
