#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <fabric/helpers/lr/lr_scheduler.h>

namespace fabric {

/// Settings of ReduceLROnPlateau.
struct FABRIC_API ReduceLROnPlateauConfig {
  /// "min": smaller is better; "max": larger is.
  std::string mode = "min";
  /// Below 1.
  double factor = 0.1;
  /// Reduces when more than this many steps in a row brought no improvement.
  std::int64_t patience = 10;
  /// An improvement is larger than this, relative to the best or absolute by `threshold_mode` "rel" or "abs".
  double threshold = 1e-4;
  std::string threshold_mode = "rel";
  /// Steps after a reduction that do not count as bad.
  std::int64_t cooldown = 0;
  PerGroup min_lr = 0.0;
  /// A reduction by no more than this is left out.
  double eps = 1e-8;
  FABRIC_FIELDS(ReduceLROnPlateauConfig, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps)
  void validate() const;
};

/// Multiplies the learning rates by `factor` when a metric stopped improving; `step(metric)` after each validation.
/// NaN is no improvement.
class FABRIC_API ReduceLROnPlateau : public ConfiguredLR<ReduceLROnPlateauConfig> {
 public:
  using Config = ReduceLROnPlateauConfig;
  explicit ReduceLROnPlateau(torch::optim::Optimizer& optimizer, Config config = {});
  const char* name() const override { return "ReduceLROnPlateau"; }
  bool needs_metric() const override { return true; }

  /// The lower bounds, by group; new groups get a copy of the first.
  const std::vector<double>& min_lrs() const { return min_lrs_; }
  double best() const { return best_; }
  std::int64_t num_bad_epochs() const { return num_bad_epochs_; }
  bool in_cooldown() const { return cooldown_counter_ > 0; }
  void grow(double initial_lr) override;
  void shrink(std::size_t groups) override;

 protected:
  double next_lr(std::size_t group, double lr) override;
  void start_over() override;
  void advance(std::optional<double> metric) override;
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;

 private:
  bool is_better(double metric) const;
  void reduce();
  std::vector<double> min_lrs_;
  double best_ = 0;
  std::int64_t num_bad_epochs_ = 0;
  std::int64_t cooldown_counter_ = 0;
};

}  // namespace fabric
