#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include <c10/core/Device.h>

#include <fabric/config.h>
#include <fabric/export.h>

namespace fabric {

/// What the user wrote for `devices`: a count, -1 or "-1" (all), "auto", a list of indices or "0,2".
class FABRIC_API DeviceSpec {
 public:
  DeviceSpec() = default;
  DeviceSpec(int count) : text_(std::to_string(count)), is_number_(true) {}
  DeviceSpec(const char* text) : text_(text) {}
  DeviceSpec(std::string text) : text_(std::move(text)) {}
  DeviceSpec(std::initializer_list<int> indices);
  DeviceSpec(const std::vector<int>& indices);

  const std::string& text() const { return text_; }
  bool is_auto() const { return text_ == "auto"; }
  bool operator==(const DeviceSpec& other) const { return text_ == other.text_; }

  /// For the field list of a Config: a number, a string or a list of numbers.
  static DeviceSpec from_tree(const Tree& tree);
  Tree to_tree() const;

 private:
  std::string text_ = "auto";
  bool is_number_ = false;
};

/// One kind of device. Owned by the strategy; used from the thread that set it up.
class FABRIC_API Accelerator {
 public:
  struct MemoryStats {
    std::int64_t allocated_bytes = 0;
    std::int64_t reserved_bytes = 0;
    std::int64_t peak_allocated_bytes = 0;
    std::int64_t total_bytes = 0;
  };

  virtual ~Accelerator() = default;
  virtual std::string name() const = 0;
  virtual c10::DeviceType device_type() const = 0;
  virtual bool is_available() const = 0;
  /// Why it is not available, and what to do; empty when it is.
  virtual std::string unavailable_reason() const = 0;
  /// How many devices `auto` takes.
  virtual int auto_device_count() const = 0;
  /// Device indices out of the user's spec. Throws ConfigError for 0, an empty list, duplicates, absent indices.
  virtual std::vector<int> parse_devices(const DeviceSpec& spec) const = 0;
  virtual std::vector<c10::Device> get_parallel_devices(const std::vector<int>& indices) const = 0;
  /// Makes `device` the current one. Throws MisuseError for a device of another kind.
  virtual void setup_device(c10::Device device) = 0;
  virtual void teardown() {}
  /// Waits until all work queued on `device` is done.
  virtual void synchronize(c10::Device device) = 0;
  virtual MemoryStats memory_stats(c10::Device device) const = 0;
  virtual void reset_peak_memory(c10::Device) {}
  virtual void empty_cache() {}
  virtual void manual_seed(std::uint64_t seed) = 0;
  /// Threads that a rank should use when `local_world_size` ranks share this node: affinity mask divided by ranks.
  virtual int threads_per_rank(int local_world_size) const;
};

/// "auto" | "cpu" | "cuda" | "gpu" | a registered name. Throws ConfigError (unknown) or UnavailableError (not there).
FABRIC_API std::shared_ptr<Accelerator> make_accelerator(const std::string& name);
/// Adds a kind of device; throws ConfigError for a name that is taken unless `override_existing`.
FABRIC_API void register_accelerator(const std::string& name, std::function<std::shared_ptr<Accelerator>()> make,
                                     bool override_existing = false);
FABRIC_API std::vector<std::string> available_accelerators();
FABRIC_API std::vector<std::string> registered_accelerators();

}  // namespace fabric
