#include "accelerators/cuda/cuda_presence.h"

#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <vector>

#include <fabric/base/plugin_library_internal.h>

namespace fabric {
namespace {

// Device nodes are /dev/nvidia0, /dev/nvidia1, …; a container sees those it was given. Under WSL there is only
// /dev/dxg.
int count_nodes(const std::filesystem::path& dev) {
  int count = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dev, error)) {
    std::string name = entry.path().filename().string();
    const std::string prefix = "nvidia";
    if (name.size() <= prefix.size() || name.compare(0, prefix.size(), prefix) != 0) continue;
    if (std::all_of(name.begin() + prefix.size(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) ++count;
  }
  return count == 0 && std::filesystem::exists(dev / "dxg", error) ? 1 : count;
}

// CUDA's own rule: entries up to the first that names no device; a device named twice makes none visible.
int count_visible(const std::string& list, int nodes) {
  std::vector<std::string> seen;
  for (std::size_t at = 0; at <= list.size();) {
    auto comma = std::min(list.find(',', at), list.size());
    std::string item = list.substr(at, comma - at);
    item.erase(0, item.find_first_not_of(' '));
    item.erase(item.find_last_not_of(' ') + 1);
    at = comma + 1;
    bool by_id = item.compare(0, 4, "GPU-") == 0 || item.compare(0, 4, "MIG-") == 0;
    int index = -1;
    auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), index);
    if (!by_id && (error != std::errc() || end != item.data() + item.size() || index < 0 || index >= nodes)) break;
    if (std::find(seen.begin(), seen.end(), item) != seen.end()) return 0;
    seen.push_back(item);
  }
  return static_cast<int>(seen.size());
}

// Loading the library does not initialise CUDA; cuInit would, and forked children could not use CUDA any more.
bool driver_loads() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver) dlclose(driver);
  return driver != nullptr;
}

}  // namespace

CudaAccelerator::Presence find_cuda(const EnvReader& env, const std::filesystem::path& dev, bool has_driver,
                                    bool has_plugin) {
  int nodes = count_nodes(dev);
  if (nodes == 0)
    return {0, "there is no GPU on this machine (or none was given to this container: " + (dev / "nvidia0").string() +
                   " is missing)"};
  if (!has_driver)
    return {0, "there is a GPU, but its driver's library libcuda.so.1 cannot be loaded. Install Nvidia's driver"};
  if (auto visible = env.get("CUDA_VISIBLE_DEVICES")) {
    nodes = count_visible(*visible, nodes);
    if (nodes == 0) return {0, "CUDA_VISIBLE_DEVICES='" + *visible + "' hides every GPU"};
  }
  if (!has_plugin)
    return {0,
            "there is a GPU, but libtorchfabric_cuda.so is not beside libtorchfabric.so. Build with the CUDA toolkit's "
            "headers and NCCL at hand (cmake -DFABRIC_WITH_CUDA=ON says what is missing)"};
  return {nodes, {}};
}

CudaAccelerator::Presence find_cuda() {
  return find_cuda(*process_env(), "/dev", driver_loads(), has_plugin_library("torchfabric_cuda"));
}

}  // namespace fabric
