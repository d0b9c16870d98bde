#pragma once

#include <optional>

#include <fabric/utilities/throughput.h>

namespace fabric {

class Fabric;

/// A Throughput for a loop over Fabric: knows the number of ranks and, on GPUs that peak_flops lists, the device's peak
/// for the precision; sends its figures to Fabric's loggers. Does nothing but count on ranks other than 0. A GPU that
/// is not listed is a warning.
class FABRIC_API ThroughputMonitor {
 public:
  struct Config {
    /// Peak of one device in FLOP/s; missing: looked up, for float32 that of TF32 where at::globalContext allows it for
    /// products of matrices when the monitor is made.
    std::optional<double> available_flops = {};
    int window_size = 100;
    std::string separator = "/";
  };
  explicit ThroughputMonitor(const Fabric& fabric) : ThroughputMonitor(fabric, Config{}) {}
  /// `fabric` must outlive the monitor.
  ThroughputMonitor(const Fabric& fabric, Config config);

  void update(const Throughput::Update& update);
  /// The figures, after they went to the loggers; empty on other ranks. Without a step the number of updates so far,
  /// less one, counts.
  Metrics compute_and_log(std::optional<std::int64_t> step = std::nullopt);
  void reset();
  /// What the share of the peak is computed with.
  std::optional<double> available_flops() const { return available_flops_; }

 private:
  const Fabric* fabric_;
  std::optional<double> available_flops_;
  Throughput throughput_;
  std::int64_t updates_ = 0;
};

}  // namespace fabric
