#pragma once

#include <fabric/accelerators/accelerator.h>

namespace fabric {

/// What the CUDA accelerator does with devices; libtorchfabric_cuda implements it. Devices are indices here.
class CudaRuntime {
 public:
  virtual ~CudaRuntime() = default;
  virtual int device_count() = 0;
  virtual void set_device(int device) = 0;
  virtual void synchronize(int device) = 0;
  virtual Accelerator::MemoryStats memory_stats(int device) = 0;
  virtual std::string device_name(int device) = 0;
  virtual void reset_peak_memory(int device) = 0;
  virtual void empty_cache() = 0;
  virtual void manual_seed(std::uint64_t seed) = 0;
  virtual Scope side_stream(int device) = 0;
  virtual bool can_access_peer(int from, int to) = 0;
  /// Units that multiply matrices of float32 too, at less than its precision.
  virtual bool has_tensor_cores(int) { return false; }
};

/// Name and type of the function in libtorchfabric_cuda that returns the one runtime, which is never destroyed.
inline constexpr const char* kCudaRuntime = "fabric_cuda_runtime";
using GetCudaRuntime = CudaRuntime* (*)();

}  // namespace fabric
