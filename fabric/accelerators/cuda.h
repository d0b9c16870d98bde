#pragma once

#include <optional>

#include <fabric/accelerators/accelerator.h>

namespace fabric {

class CudaRuntime;

/// Nvidia's GPUs. Asking whether and how many there are does not initialise CUDA, so that a process may ask and then
/// fork; libtorchfabric_cuda is loaded by the first call that works with a device. Those calls throw UnavailableError
/// when there is no GPU, no driver or no such library.
/// @experimental
class FABRIC_API CudaAccelerator : public Accelerator {
 public:
  /// How many GPUs this process may use and, when none, why.
  struct Presence {
    int devices = 0;
    std::string reason;
  };

  CudaAccelerator();
  /// For tests: the presence and what stands for the CUDA runtime come from outside.
  CudaAccelerator(Presence presence, std::function<CudaRuntime&()> runtime);

  std::string name() const override { return "cuda"; }
  c10::DeviceType device_type() const override { return c10::DeviceType::CUDA; }
  bool is_available() const override { return presence_.devices > 0; }
  std::string unavailable_reason() const override { return presence_.reason; }
  int auto_device_count() const override { return presence_.devices; }
  std::vector<int> parse_devices(const DeviceSpec& spec) const override;
  std::vector<c10::Device> get_parallel_devices(const std::vector<int>& indices) const override;
  void setup_device(c10::Device device) override;
  void teardown() override;
  void synchronize(c10::Device device) override;
  /// In bytes, of LibTorch's caching allocator; total is the device's memory.
  MemoryStats memory_stats(c10::Device device) const override;
  std::string device_name(c10::Device device) const override;
  void reset_peak_memory(c10::Device device) override;
  void empty_cache() override;
  /// Before a device is set up the seed is kept, and used when one is.
  void manual_seed(std::uint64_t seed) override;
  void set_float32_matmul_precision(const std::string& name) override;
  Scope side_stream(c10::Device device) override;
  /// The first `count` GPUs (-1: all) on which a context can be made: another process may hold one for itself, or it
  /// may be broken. Loads CUDA. Throws ConfigError when `count` is 0, below -1 or more than there are, UnavailableError
  /// when fewer are usable.
  std::vector<int> find_usable_devices(int count = -1) const;
  bool can_access_peer(c10::Device from, c10::Device to) const override;

 private:
  CudaRuntime& runtime() const;
  int index_of(c10::Device device) const;
  void hint_at_tensor_cores(int device);

  Presence presence_;
  std::function<CudaRuntime&()> load_;
  mutable CudaRuntime* runtime_ = nullptr;
  std::optional<std::uint64_t> seed_;
  bool matmul_was_chosen_ = false;
};

}  // namespace fabric
