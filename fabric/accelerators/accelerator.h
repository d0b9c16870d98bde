#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include <c10/core/Device.h>

#include <fabric/base/env_reader.h>
#include <fabric/base/scope.h>
#include <fabric/config.h>
#include <fabric/export.h>

namespace fabric {

/// What the user wrote for `devices`: a count, -1 or "-1" (all), "auto", a list of indices or "0,2" ("2," is the one
/// device 2, "2" is two devices).
class FABRIC_API DeviceSpec {
 public:
  DeviceSpec() = default;
  DeviceSpec(int count) : text_(std::to_string(count)), is_number_(true) {}
  DeviceSpec(const char* text) : text_(text) {}
  DeviceSpec(std::string text) : text_(std::move(text)) {}
  DeviceSpec(std::initializer_list<int> indices);
  DeviceSpec(const std::vector<int>& indices);
  /// Neither is a count; without these, `true` would silently mean one device.
  DeviceSpec(bool) = delete;
  DeviceSpec(double) = delete;

  const std::string& text() const { return text_; }
  bool is_auto() const { return text_ == "auto"; }
  bool operator==(const DeviceSpec& other) const { return text_ == other.text_; }

  /// For the field list of a Config: a number, a string, a list of numbers, or null for "auto". Throws ConfigError for
  /// anything else.
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
  /// The maker's name of the device ("NVIDIA H200"); empty where there is none.
  virtual std::string device_name(c10::Device) const { return ""; }
  virtual void reset_peak_memory(c10::Device) {}
  virtual void empty_cache() {}
  /// Seeds the random numbers that are drawn on devices of this kind.
  virtual void manual_seed(std::uint64_t seed) = 0;
  /// Until the scope ends, this thread queues its work on a stream of its own that starts after what is queued now;
  /// then the stream from before waits for it. Does nothing where there are no streams.
  virtual Scope side_stream(c10::Device) { return {}; }
  /// Whether `from` can read the memory of `to` without going through the host.
  virtual bool can_access_peer(c10::Device from, c10::Device to) const { return from == to; }
  /// How exactly float32 matrices are multiplied, for all of the process: "highest" (LibTorch's default), "high" (TF32
  /// on GPUs that have it), "medium" (bfloat16 inside). Throws ConfigError for another name.
  virtual void set_float32_matmul_precision(const std::string& name);
  /// Threads that a rank should use when `local_world_size` ranks run on this node, at least 1: the processors this
  /// process may run on divided by the ranks. They are not divided where they are this rank's own: a task that srun
  /// gave --cpus-per-task uses that many, and a rank that mpirun bound uses its share of mpirun's processors as far as
  /// it is bound to them (`--map-by slot:PE=4`: four). Where that is not known, too few threads are better than too
  /// many. `env`: the variables that tell.
  virtual int threads_per_rank(int local_world_size, const EnvReader& env = *process_env()) const;
};

/// "auto" (cuda where it is available, else cpu) | "cpu" | "cuda" | "gpu" (cuda) | a registered name, in any case.
/// Throws ConfigError (unknown) or UnavailableError (not there).
FABRIC_API std::shared_ptr<Accelerator> make_accelerator(const std::string& name);
/// Adds a kind of device; throws ConfigError for a name that is taken unless `override_existing`.
FABRIC_API void register_accelerator(const std::string& name, std::function<std::shared_ptr<Accelerator>()> make,
                                     bool override_existing = false, std::string description = "");
/// Those whose devices are there, in the order of registration.
FABRIC_API std::vector<std::string> available_accelerators();
FABRIC_API std::vector<std::string> registered_accelerators();

}  // namespace fabric
