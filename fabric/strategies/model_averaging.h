#pragma once

#include <cstdint>
#include <vector>

#include <fabric/plugins/collectives/process_group.h>

namespace fabric {

/// Averages parameters over the ranks every few steps, so that ranks may train on their own in between. `ddp` uses it
/// with `model_averaging_period`; it works without ddp as well, for any parameters that every rank has.
class FABRIC_API ModelAverager {
 public:
  struct Config {
    /// Steps from one averaging to the next; at least 1.
    std::int64_t period = 1;
    /// Steps at the beginning during which nothing is averaged.
    std::int64_t warmup_steps = 0;
    FABRIC_FIELDS(Config, period, warmup_steps)
  };
  /// Throws ConfigError for a period below 1 or negative warm-up.
  ModelAverager(ProcessGroup group, const Config& config);

  /// Counts one step. When one is due, replaces each parameter, in place, by its mean over the ranks. Every rank calls
  /// it with the same parameters. True when it averaged.
  bool step(const std::vector<at::Tensor>& parameters);
  /// Steps counted so far.
  std::int64_t steps() const { return steps_; }
  /// For resuming.
  void set_steps(std::int64_t steps) { steps_ = steps; }
  bool in_warmup() const { return steps_ < config_.warmup_steps; }

 private:
  ProcessGroup group_;
  Config config_;
  std::int64_t steps_ = 0;
};

/// Replaces each tensor, in place, by its mean over the ranks; one all-reduce per type and device.
FABRIC_API void average_parameters(const std::vector<at::Tensor>& parameters, const ProcessGroup& group);

}  // namespace fabric
