// Part of libtorchfabric_cuda.
#include "accelerators/cuda/cuda_runtime.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAFunctions.h>

#include "accelerators/torch_device.h"

namespace fabric {
namespace {

c10::DeviceIndex to_index(int device) { return static_cast<c10::DeviceIndex>(device); }
c10::Device to_device(int device) { return {c10::DeviceType::CUDA, to_index(device)}; }

// Behind the device-neutral interfaces; what is asked of CUDA itself is listed in docs/architecture.md.
class LibTorchCuda : public CudaRuntime {
 public:
  LibTorchCuda() {
    bool fresh = !c10::cuda::getDeviceIndexWithPrimaryContext().has_value();
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    // A seed that was set before this library was loaded has reached the CPU's generator only.
    if (fresh) manual_seed(at::globalContext().defaultGenerator(c10::DeviceType::CPU).current_seed());
  }

  int device_count() override { return torch_device::count(c10::DeviceType::CUDA); }
  void set_device(int device) override { torch_device::set_current(to_device(device)); }
  void synchronize(int device) override { torch_device::synchronize(to_device(device)); }
  Accelerator::MemoryStats memory_stats(int device) override {
    auto stats = torch_device::memory_stats(to_device(device));
    // More than what is left for this process.
    stats.total_bytes = static_cast<std::int64_t>(at::cuda::getDeviceProperties(to_index(device))->totalGlobalMem);
    return stats;
  }
  std::string device_name(int device) override { return at::cuda::getDeviceProperties(to_index(device))->name; }
  void reset_peak_memory(int device) override { torch_device::reset_peak_memory(to_device(device)); }
  void empty_cache() override { torch_device::empty_cache(c10::DeviceType::CUDA); }
  void manual_seed(std::uint64_t seed) override { torch_device::manual_seed(c10::DeviceType::CUDA, seed); }
  Scope side_stream(int device) override { return torch_device::side_stream(to_device(device)); }

  bool has_tensor_cores(int device) override { return at::cuda::getDeviceProperties(to_index(device))->major >= 8; }

  bool can_access_peer(int from, int to) override {
    return from == to || at::cuda::canDeviceAccessPeer(to_index(from), to_index(to));
  }
};

}  // namespace
}  // namespace fabric

extern "C" FABRIC_API fabric::CudaRuntime* fabric_cuda_runtime() {
  static auto* runtime = new fabric::LibTorchCuda;
  return runtime;
}
