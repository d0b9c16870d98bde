#pragma once

#include <cstdint>
#include <optional>

#include <fabric/helpers/lr/lr_scheduler.h>

namespace fabric {

/// Settings of CosineAnnealingLR.
struct FABRIC_API CosineAnnealingLRConfig {
  /// Epochs from the highest to the lowest learning rate; must be given.
  std::optional<std::int64_t> T_max = {};
  double eta_min = 0;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(CosineAnnealingLRConfig, T_max, eta_min, last_epoch)
  void validate() const;
};
/// Half a cosine from the base learning rate down to `eta_min` in `T_max` epochs, then up again, and so on.
class FABRIC_API CosineAnnealingLR : public ConfiguredLR<CosineAnnealingLRConfig> {
 public:
  using Config = CosineAnnealingLRConfig;
  CosineAnnealingLR(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "CosineAnnealingLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

/// Settings of CosineAnnealingWarmRestarts.
struct FABRIC_API CosineAnnealingWarmRestartsConfig {
  /// Epochs until the first restart; must be given.
  std::optional<std::int64_t> T_0 = {};
  /// Each round lasts this many times the one before.
  std::int64_t T_mult = 1;
  double eta_min = 0;
  /// The run goes on after this epoch, in the round that it lies in. (Python counts one round at most before it, which
  /// with a T_mult above 1 is another rate after the second restart.)
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(CosineAnnealingWarmRestartsConfig, T_0, T_mult, eta_min, last_epoch)
  void validate() const;
};
/// Half a cosine from the base learning rate down to `eta_min`, again and again.
class FABRIC_API CosineAnnealingWarmRestarts : public ConfiguredLR<CosineAnnealingWarmRestartsConfig> {
 public:
  using Config = CosineAnnealingWarmRestartsConfig;
  CosineAnnealingWarmRestarts(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "CosineAnnealingWarmRestarts"; }

  /// Goes to any epoch, a fraction too: `step_to(epoch + batch / batches)` after each batch. Throws MisuseError below
  /// 0.
  void step_to(double epoch);

 protected:
  double next_lr(std::size_t group, double lr) override;
  void start_over() override;
  void advance(std::optional<double> metric) override;
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;

 private:
  struct Place {
    double in_round, round;
  };
  Place place_of(double epoch) const;
  void enter(std::int64_t last_epoch, Place place);
  double in_round_ = 0;  // T_cur
  double round_ = 1;     // T_i
};

}  // namespace fabric
