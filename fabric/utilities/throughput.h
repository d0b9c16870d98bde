#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fabric/plugins/loggers/logger.h>

namespace fabric {

/// Rates over a window of updates: batches, samples, items (tokens, say) and floating point operations per second, and
/// the share of the device's peak that they reach (model FLOPs utilisation, "mfu").
class FABRIC_API Throughput {
 public:
  struct Config {
    /// Peak of one device in FLOP/s; missing: no mfu.
    std::optional<double> available_flops = {};
    int world_size = 1;
    /// Rates appear once this many updates were seen.
    int window_size = 100;
    std::string separator = "/";
  };
  explicit Throughput(Config config);
  Throughput() : Throughput(Config{}) {}

  /// Totals of this rank since the start, all but `flops`: seconds, batches, samples, and items if they are counted.
  struct Update {
    double time = 0;
    std::int64_t batches = 0;
    std::int64_t samples = 0;
    std::optional<std::int64_t> lengths = std::nullopt;
    /// Of this rank since the last update, not a total.
    std::optional<double> flops = std::nullopt;
  };
  /// Each total must be larger than the last one, with samples >= batches and lengths >= samples, and lengths and flops
  /// given always or never; MisuseError otherwise, and nothing is taken in.
  void update(const Update& update);
  /// "time", "batches", "samples" and "lengths" always; once the window is full "device/batches_per_sec",
  /// "device/samples_per_sec", "device/items_per_sec", "device/flops_per_sec" and "device/mfu", and without "device/"
  /// the sums over all ranks where there are several. Throws MisuseError before the first update.
  Metrics compute() const;
  void reset();

 private:
  const Update& oldest() const;
  const Update& newest() const;
  Config config_;
  std::vector<Update> window_;  // a ring
  std::size_t next_ = 0;
};

/// Peak FLOP/s of a GPU by its name ("NVIDIA H100 80GB HBM3") and the type it computes with ("float64", "float32",
/// "tf32", "float16", "bfloat16", "int8"), for products of dense matrices, sums in float32 where the type is a 16-bit
/// one. Missing when the GPU or the type is not known, and for the slower ones of laptops.
FABRIC_API std::optional<double> peak_flops(std::string_view device_name, std::string_view dtype);

}  // namespace fabric
