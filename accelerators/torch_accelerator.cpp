#include <fabric/accelerators/torch_accelerator.h>

#include <fabric/base/error.h>

#include "accelerators/device_request.h"
#include "accelerators/torch_device.h"

namespace fabric {

TorchAccelerator::TorchAccelerator(c10::DeviceType type, std::string name)
    : type_(type), name_(name.empty() ? c10::DeviceTypeName(type, /*lower_case=*/true) : std::move(name)) {
  if (type == c10::DeviceType::CPU || type == c10::DeviceType::Meta)
    throw MisuseError("TorchAccelerator is for devices with streams, not for '" + c10::DeviceTypeName(type, true) +
                      "'; use CpuAccelerator");
}

std::string TorchAccelerator::unavailable_reason() const {
  if (is_available()) return {};
  return c10::impl::hasDeviceGuardImpl(type_)
             ? "LibTorch finds no device of kind '" + c10::DeviceTypeName(type_, true) + "'"
             : "nothing in this process brings devices of kind '" + c10::DeviceTypeName(type_, true) +
                   "' to LibTorch; load the library that does before the Fabric is made";
}

int TorchAccelerator::auto_device_count() const { return torch_device::count(type_); }

std::vector<int> TorchAccelerator::parse_devices(const DeviceSpec& spec) const {
  read_device_request(spec);
  if (!is_available())
    throw UnavailableError("accelerator '" + name_ + "' cannot be used: " + unavailable_reason() +
                           ". Use accelerator 'cpu' instead");
  return parse_device_indices(spec, auto_device_count(), name_ + " device");
}

std::vector<c10::Device> TorchAccelerator::get_parallel_devices(const std::vector<int>& indices) const {
  std::vector<c10::Device> devices;
  for (int index : indices) devices.emplace_back(type_, static_cast<c10::DeviceIndex>(index));
  return devices;
}

c10::Device TorchAccelerator::require_own(c10::Device device) const {
  if (device.type() != type_)
    throw MisuseError("accelerator " + name_ + " was given the device '" + device.str() + "'. Pass a device of kind '" +
                      c10::DeviceTypeName(type_, true) + "', or choose another accelerator");
  return device.has_index() ? device : c10::Device(type_, 0);
}

void TorchAccelerator::setup_device(c10::Device device) {
  torch_device::set_current(require_own(device));
  is_set_up_ = true;
  if (seed_) torch_device::manual_seed(type_, *seed_);
  seed_.reset();
}

void TorchAccelerator::teardown() { empty_cache(); }

void TorchAccelerator::synchronize(c10::Device device) { torch_device::synchronize(require_own(device)); }

Accelerator::MemoryStats TorchAccelerator::memory_stats(c10::Device device) const {
  return torch_device::memory_stats(require_own(device));
}

void TorchAccelerator::reset_peak_memory(c10::Device device) { torch_device::reset_peak_memory(require_own(device)); }

void TorchAccelerator::empty_cache() {
  if (is_set_up_) torch_device::empty_cache(type_);
}

void TorchAccelerator::manual_seed(std::uint64_t seed) {
  if (is_set_up_)
    torch_device::manual_seed(type_, seed);
  else
    seed_ = seed;
}

Scope TorchAccelerator::side_stream(c10::Device device) { return torch_device::side_stream(require_own(device)); }

}  // namespace fabric
