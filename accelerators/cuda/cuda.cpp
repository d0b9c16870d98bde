#include <fabric/accelerators/cuda.h>

#include <utility>

#include <ATen/Context.h>

#include <fabric/base/lifecycle.h>
#include <fabric/base/log.h>
#include <fabric/base/plugin_library_internal.h>

#include "accelerators/cuda/cuda_presence.h"
#include "accelerators/cuda/cuda_runtime.h"
#include "accelerators/device_request.h"

namespace fabric {
namespace {

CudaRuntime& load_runtime() {
  auto get = reinterpret_cast<GetCudaRuntime>(load_plugin_symbol("torchfabric_cuda", kCudaRuntime, kPluginAbi));
  return *get();
}

}  // namespace

CudaAccelerator::CudaAccelerator() : CudaAccelerator(find_cuda(), load_runtime) {}

CudaAccelerator::CudaAccelerator(Presence presence, std::function<CudaRuntime&()> runtime)
    : presence_(std::move(presence)), load_(std::move(runtime)) {}

CudaRuntime& CudaAccelerator::runtime() const {
  if (!is_available())
    throw UnavailableError("accelerator 'cuda' cannot be used: " + presence_.reason +
                           ". Use accelerator 'cpu' instead");
  if (!runtime_) runtime_ = &load_();
  return *runtime_;
}

int CudaAccelerator::index_of(c10::Device device) const {
  if (!device.is_cuda())
    throw MisuseError("accelerator cuda was given the device '" + device.str() +
                      "'. Pass a CUDA device, or choose accelerator 'cpu'");
  return device.has_index() ? device.index() : 0;
}

std::vector<int> CudaAccelerator::parse_devices(const DeviceSpec& spec) const {
  read_device_request(spec);
  if (!is_available())
    throw UnavailableError("accelerator 'cuda' cannot be used: " + presence_.reason +
                           ". Use accelerator 'cpu' instead");
  return parse_device_indices(spec, presence_.devices, "GPU");
}

std::vector<c10::Device> CudaAccelerator::get_parallel_devices(const std::vector<int>& indices) const {
  std::vector<c10::Device> devices;
  for (int index : indices) devices.emplace_back(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
  return devices;
}

void CudaAccelerator::setup_device(c10::Device device) {
  FABRIC_WARN_EXPERIMENTAL("CudaAccelerator");
  int index = index_of(device);
  runtime().set_device(index);
  if (seed_) runtime().manual_seed(*seed_);
  seed_.reset();
  hint_at_tensor_cores(index);
}

void CudaAccelerator::set_float32_matmul_precision(const std::string& name) {
  Accelerator::set_float32_matmul_precision(name);
  matmul_was_chosen_ = true;
}

// Once, and not to who has chosen.
void CudaAccelerator::hint_at_tensor_cores(int device) {
  const bool exact = at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGHEST;
  if (std::exchange(matmul_was_chosen_, true) || !exact || !runtime().has_tensor_cores(device)) return;
  log::rank_zero_info("the GPU '" + runtime().device_name(device) +
                      "' has Tensor Cores, which float32 matrices do not use; float32_matmul_precision = 'high' (TF32) "
                      "or 'medium' uses them, faster and less exact, and 'highest' keeps this quiet");
}

void CudaAccelerator::teardown() {
  if (runtime_) runtime_->empty_cache();
}

void CudaAccelerator::synchronize(c10::Device device) { runtime().synchronize(index_of(device)); }

Accelerator::MemoryStats CudaAccelerator::memory_stats(c10::Device device) const {
  return runtime().memory_stats(index_of(device));
}

std::string CudaAccelerator::device_name(c10::Device device) const { return runtime().device_name(index_of(device)); }

void CudaAccelerator::reset_peak_memory(c10::Device device) { runtime().reset_peak_memory(index_of(device)); }

void CudaAccelerator::empty_cache() {
  if (runtime_) runtime_->empty_cache();
}

void CudaAccelerator::manual_seed(std::uint64_t seed) {
  if (runtime_)
    runtime_->manual_seed(seed);
  else
    seed_ = seed;
}

std::vector<int> CudaAccelerator::find_usable_devices(int count) const {
  if (count == 0 || count < -1 || count > presence_.devices)
    throw ConfigError(std::to_string(count) + " usable GPUs were asked for; give a number from 1 to " +
                      std::to_string(presence_.devices) +
                      ", as many as there are here, or -1 for all that can be used");
  std::vector<int> usable;
  std::string reasons;
  for (int device = 0; device < presence_.devices && static_cast<int>(usable.size()) != count; ++device) {
    try {
      runtime().synchronize(device);  // makes its context, which takes memory
      usable.push_back(device);
    } catch (const std::exception& error) {
      reasons += "; GPU " + std::to_string(device) + ": " + error.what();
    }
  }
  if (count > static_cast<int>(usable.size()))
    throw UnavailableError(std::to_string(count) + " GPUs were asked for, but only " + std::to_string(usable.size()) +
                           " can be used" + reasons);
  return usable;
}

Scope CudaAccelerator::side_stream(c10::Device device) { return runtime().side_stream(index_of(device)); }

bool CudaAccelerator::can_access_peer(c10::Device from, c10::Device to) const {
  return runtime().can_access_peer(index_of(from), index_of(to));
}

}  // namespace fabric
