#pragma once

#include <optional>

#include <fabric/accelerators/accelerator.h>

namespace fabric {

/// Devices of any kind that this process's LibTorch knows, used through LibTorch's device-neutral interfaces alone: a
/// guard (streams and events), a c10::DeviceAllocator, default generators. For devices that another library brings:
///
///     fabric::register_accelerator("mine", [] {
///       return std::make_shared<fabric::TorchAccelerator>(c10::DeviceType::PrivateUse1);
///     });
///
/// Derive from it to add what those interfaces do not tell: a device's name, which devices reach each other's memory.
class FABRIC_API TorchAccelerator : public Accelerator {
 public:
  /// `name`: by default LibTorch's name of the kind in lower case ("xpu", or what a PrivateUse1 was renamed to).
  explicit TorchAccelerator(c10::DeviceType type, std::string name = "");

  std::string name() const override { return name_; }
  c10::DeviceType device_type() const override { return type_; }
  bool is_available() const override { return auto_device_count() > 0; }
  std::string unavailable_reason() const override;
  /// All there are.
  int auto_device_count() const override;
  std::vector<int> parse_devices(const DeviceSpec& spec) const override;
  std::vector<c10::Device> get_parallel_devices(const std::vector<int>& indices) const override;
  void setup_device(c10::Device device) override;
  void teardown() override;
  void synchronize(c10::Device device) override;
  /// In bytes, of LibTorch's allocator for the device; the total is 0 where that does not tell it.
  MemoryStats memory_stats(c10::Device device) const override;
  void reset_peak_memory(c10::Device device) override;
  void empty_cache() override;
  /// Before a device is set up the seed is kept, and used when one is.
  void manual_seed(std::uint64_t seed) override;
  Scope side_stream(c10::Device device) override;

 protected:
  /// The device with an index. Throws MisuseError for one of another kind.
  c10::Device require_own(c10::Device device) const;

 private:
  c10::DeviceType type_;
  std::string name_;
  bool is_set_up_ = false;
  std::optional<std::uint64_t> seed_;
};

}  // namespace fabric
