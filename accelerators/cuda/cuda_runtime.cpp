// Part of libtorchfabric_cuda.
#include "accelerators/cuda/cuda_runtime.h"

#include <mutex>

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

namespace fabric {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;
constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);

c10::DeviceIndex to_index(int device) { return static_cast<c10::DeviceIndex>(device); }

// `later` waits, on the device, for what is queued on `earlier`.
void order(const c10::cuda::CUDAStream& earlier, const c10::cuda::CUDAStream& later) {
  at::cuda::CUDAEvent event;
  event.record(earlier);
  event.block(later);
}

class LibTorchCuda : public CudaRuntime {
 public:
  LibTorchCuda() {
    bool fresh = !c10::cuda::getDeviceIndexWithPrimaryContext().has_value();
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    // A seed that was set before this library was loaded has reached the CPU's generator only.
    if (fresh) manual_seed(at::globalContext().defaultGenerator(c10::DeviceType::CPU).current_seed());
  }

  int device_count() override { return c10::cuda::device_count(); }
  void set_device(int device) override { c10::cuda::set_device(to_index(device)); }
  void synchronize(int device) override {
    c10::cuda::CUDAGuard guard(to_index(device));
    c10::cuda::device_synchronize();
  }

  Accelerator::MemoryStats memory_stats(int device) override {
    auto stats = allocator::getDeviceStats(to_index(device));
    return {.allocated_bytes = stats.allocated_bytes[kAll].current,
            .reserved_bytes = stats.reserved_bytes[kAll].current,
            .peak_allocated_bytes = stats.allocated_bytes[kAll].peak,
            .total_bytes = static_cast<std::int64_t>(at::cuda::getDeviceProperties(to_index(device))->totalGlobalMem)};
  }
  std::string device_name(int device) override { return at::cuda::getDeviceProperties(to_index(device))->name; }
  void reset_peak_memory(int device) override { allocator::resetPeakStats(to_index(device)); }
  void empty_cache() override { allocator::emptyCache(); }

  void manual_seed(std::uint64_t seed) override {
    for (int device = 0; device < device_count(); ++device) {
      auto generator = at::globalContext().defaultGenerator(c10::Device(c10::DeviceType::CUDA, to_index(device)));
      std::lock_guard lock(generator.mutex());
      generator.set_current_seed(seed);
    }
  }

  Scope side_stream(int device) override {
    auto outer = c10::cuda::getCurrentCUDAStream(to_index(device));
    auto inner = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, to_index(device));
    order(outer, inner);
    c10::cuda::setCurrentCUDAStream(inner);
    return Scope([outer, inner] {
      order(inner, outer);
      c10::cuda::setCurrentCUDAStream(outer);
    });
  }

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
