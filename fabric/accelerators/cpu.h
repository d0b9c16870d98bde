#pragma once

#include <fabric/accelerators/accelerator.h>

namespace fabric {

/// The host's processors. `devices` is a number of processes; every one of them gets the device "cpu".
class FABRIC_API CpuAccelerator : public Accelerator {
 public:
  std::string name() const override { return "cpu"; }
  c10::DeviceType device_type() const override { return c10::DeviceType::CPU; }
  bool is_available() const override { return true; }
  std::string unavailable_reason() const override { return {}; }
  int auto_device_count() const override { return 1; }
  std::vector<int> parse_devices(const DeviceSpec& spec) const override;
  std::vector<c10::Device> get_parallel_devices(const std::vector<int>& indices) const override;
  void setup_device(c10::Device device) override;
  void synchronize(c10::Device) override {}
  /// Of this process, in bytes: resident set (allocated), address space (reserved), largest resident set (peak); total
  /// is the machine's memory.
  MemoryStats memory_stats(c10::Device device) const override;
  void reset_peak_memory(c10::Device device) override;
  void manual_seed(std::uint64_t seed) override;
};

}  // namespace fabric
