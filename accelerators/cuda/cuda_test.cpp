#include <fabric/accelerators/cuda.h>

#include "accelerators/cuda/cuda_runtime.h"
#include "tests/support/catch.h"

namespace {

using fabric::CudaAccelerator;

// Records what it is asked to do.
class FakeRuntime : public fabric::CudaRuntime {
 public:
  int device_count() override { return 2; }
  void set_device(int device) override { current = device; }
  void synchronize(int device) override {
    if (device == broken) throw std::runtime_error("all CUDA-capable devices are busy");
    synchronized = device;
  }
  fabric::Accelerator::MemoryStats memory_stats(int device) override { return {.allocated_bytes = 100 + device}; }
  std::string device_name(int device) override { return "GPU " + std::to_string(device); }
  void reset_peak_memory(int) override {}
  void empty_cache() override { ++emptied; }
  void manual_seed(std::uint64_t value) override { seed = value; }
  fabric::Scope side_stream(int) override {
    ++streams;
    return fabric::Scope([this] { --streams; });
  }
  bool can_access_peer(int from, int to) override { return from <= to; }
  bool has_tensor_cores(int) override { return tensor_cores; }

  bool tensor_cores = false;
  int current = -1, synchronized = -1, emptied = 0, streams = 0, broken = -1;
  std::uint64_t seed = 0;
};

c10::Device gpu(int index) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)); }

}  // namespace

TEST_CASE("the CUDA accelerator hands devices to the runtime, which it loads when first needed", "[cuda]") {
  FakeRuntime fake;
  int loads = 0;
  CudaAccelerator cuda({2, ""}, [&]() -> fabric::CudaRuntime& { return ++loads, fake; });
  CHECK(cuda.is_available());
  CHECK(cuda.auto_device_count() == 2);
  CHECK(cuda.parse_devices(-1) == std::vector<int>{0, 1});
  CHECK(cuda.get_parallel_devices({1, 0}) == std::vector<c10::Device>{gpu(1), gpu(0)});
  cuda.manual_seed(7);
  CHECK(loads == 0);
  CHECK(fake.seed == 0);
  cuda.setup_device(gpu(1));
  CHECK(fake.current == 1);
  CHECK(fake.seed == 7);
  cuda.manual_seed(8);
  CHECK(fake.seed == 8);
  cuda.synchronize(gpu(0));
  CHECK(fake.synchronized == 0);
  CHECK(cuda.memory_stats(gpu(1)).allocated_bytes == 101);
  CHECK(cuda.device_name(gpu(1)) == "GPU 1");
  CHECK(cuda.can_access_peer(gpu(0), gpu(1)));
  CHECK_FALSE(cuda.can_access_peer(gpu(1), gpu(0)));
  {
    auto scope = cuda.side_stream(gpu(0));
    CHECK(fake.streams == 1);
  }
  CHECK(fake.streams == 0);
  cuda.teardown();
  CHECK(fake.emptied == 1);
  CHECK(loads == 1);
}

TEST_CASE("GPUs that cannot be used are passed over", "[cuda]") {
  FakeRuntime fake;
  CudaAccelerator cuda({3, ""}, [&]() -> fabric::CudaRuntime& { return fake; });
  CHECK(cuda.find_usable_devices(2) == std::vector<int>{0, 1});
  fake.broken = 0;
  CHECK(cuda.find_usable_devices() == std::vector<int>{1, 2});
  CHECK(cuda.find_usable_devices(1) == std::vector<int>{1});
  CHECK_THROWS_WITH(cuda.find_usable_devices(3), Catch::Contains("only 2 can be used") && Catch::Contains("busy"));
  CHECK_THROWS_AS(cuda.find_usable_devices(4), fabric::ConfigError);
  CHECK_THROWS_AS(cuda.find_usable_devices(0), fabric::ConfigError);
}

TEST_CASE("the CUDA accelerator refuses devices of another kind", "[cuda]") {
  FakeRuntime fake;
  CudaAccelerator cuda({1, ""}, [&]() -> fabric::CudaRuntime& { return fake; });
  CHECK_THROWS_AS(cuda.setup_device(c10::Device("cpu")), fabric::MisuseError);
  CHECK_THROWS_AS(cuda.memory_stats(c10::Device("cpu")), fabric::MisuseError);
}

TEST_CASE("without a GPU every use of CUDA says so and nothing is loaded", "[cuda]") {
  CudaAccelerator cuda({0, "there is no GPU on this machine"},
                       []() -> fabric::CudaRuntime& { throw std::logic_error("loaded"); });
  CHECK_FALSE(cuda.is_available());
  CHECK_THROWS_AS(cuda.parse_devices(1), fabric::UnavailableError);
  CHECK_THROWS_AS(cuda.parse_devices("auto"), fabric::UnavailableError);
  CHECK_THROWS_AS(cuda.parse_devices(0), fabric::ConfigError);
  CHECK_THROWS_AS(cuda.setup_device(gpu(0)), fabric::UnavailableError);
  CHECK_THROWS_WITH(cuda.synchronize(gpu(0)), Catch::Contains("no GPU") && Catch::Contains("'cpu'"));
  cuda.manual_seed(1);
  cuda.empty_cache();
  cuda.teardown();
}
