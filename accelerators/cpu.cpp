#include <fabric/accelerators/cpu.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <numeric>
#include <sstream>

#include <ATen/CPUGeneratorImpl.h>

#include "accelerators/device_request.h"
#include "fabric/base/processors/container_limits_internal.h"

namespace fabric {
namespace {

// A line such as "VmRSS:     1234 kB" of a file below /proc, in bytes; 0 where there is none.
std::int64_t bytes_of(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, key.size(), key) != 0 || line[key.size()] != ':') continue;
    std::int64_t kib = 0;
    std::istringstream(line.substr(key.size() + 1)) >> kib;
    return kib * 1024;
  }
  return 0;
}

void require_cpu(c10::Device device) {
  if (!device.is_cpu())
    throw MisuseError("accelerator cpu was given the device '" + device.str() +
                      "'. Pass a CPU device, or choose accelerator 'cuda'");
}

}  // namespace

std::vector<int> CpuAccelerator::parse_devices(const DeviceSpec& spec) const {
  auto request = read_device_request(spec);
  if (request.kind == DeviceRequest::Kind::list || request.kind == DeviceRequest::Kind::all)
    throw ConfigError(
        "devices=" + spec.text() +
        ": on accelerator cpu this is a number of processes. Write a positive number, or \"auto\" for one");
  std::vector<int> indices(request.kind == DeviceRequest::Kind::count ? request.count : auto_device_count());
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

std::vector<c10::Device> CpuAccelerator::get_parallel_devices(const std::vector<int>& indices) const {
  return std::vector<c10::Device>(indices.size(), c10::Device(c10::DeviceType::CPU));
}

void CpuAccelerator::setup_device(c10::Device device) { require_cpu(device); }

Accelerator::MemoryStats CpuAccelerator::memory_stats(c10::Device device) const {
  require_cpu(device);
  constexpr const char* kStatus = "/proc/self/status";
  const auto machine = bytes_of("/proc/meminfo", "MemTotal");
  return {.allocated_bytes = bytes_of(kStatus, "VmRSS"),
          .reserved_bytes = bytes_of(kStatus, "VmSize"),
          .peak_allocated_bytes = bytes_of(kStatus, "VmHWM"),
          .total_bytes = std::min(machine, container::memory_limit().value_or(machine))};
}

// 5 makes the kernel forget the peak; where it may not be written, the peak of the whole run is what is reported.
void CpuAccelerator::reset_peak_memory(c10::Device device) {
  require_cpu(device);
  std::ofstream("/proc/self/clear_refs") << 5;
}

void CpuAccelerator::manual_seed(std::uint64_t seed) {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard lock(generator.mutex());
  generator.set_current_seed(seed);
}

}  // namespace fabric
