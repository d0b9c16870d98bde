#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <fabric/helpers/lr/lr_scheduler.h>

// Schedulers that multiply the learning rate by some factor at each step, so that several can work on one optimizer.
// Settings and numbers are those of torch.optim.lr_scheduler. A setting without a default there must be given here,
// too; constructors throw ConfigError for settings that cannot be. `last_epoch`: see LRScheduler::start.
namespace fabric {

/// Settings of StepLR.
struct FABRIC_API StepLRConfig {
  /// Epochs between two decays; must be given.
  std::optional<std::int64_t> step_size = {};
  double gamma = 0.1;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(StepLRConfig, step_size, gamma, last_epoch)
  void validate() const;
};
/// Multiplies by `gamma` every `step_size` epochs.
class FABRIC_API StepLR : public ConfiguredLR<StepLRConfig> {
 public:
  using Config = StepLRConfig;
  StepLR(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "StepLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

/// Settings of MultiStepLR.
struct FABRIC_API MultiStepLRConfig {
  /// Epochs at which to decay; one that is listed twice decays twice.
  std::vector<std::int64_t> milestones = {};
  double gamma = 0.1;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(MultiStepLRConfig, milestones, gamma, last_epoch)
  void validate() const {}
};
/// Multiplies by `gamma` at each of the milestones.
class FABRIC_API MultiStepLR : public ConfiguredLR<MultiStepLRConfig> {
 public:
  using Config = MultiStepLRConfig;
  MultiStepLR(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "MultiStepLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

/// Settings of ConstantLR.
struct FABRIC_API ConstantLRConfig {
  /// Between 0 and 1.
  double factor = 1.0 / 3;
  std::int64_t total_iters = 5;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(ConstantLRConfig, factor, total_iters, last_epoch)
  void validate() const;
};
/// Multiplies by `factor` for the first `total_iters` epochs.
class FABRIC_API ConstantLR : public ConfiguredLR<ConstantLRConfig> {
 public:
  using Config = ConstantLRConfig;
  explicit ConstantLR(torch::optim::Optimizer& optimizer, Config config = {});
  const char* name() const override { return "ConstantLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

/// Settings of LinearLR.
struct FABRIC_API LinearLRConfig {
  /// Above 0, at most 1.
  double start_factor = 1.0 / 3;
  /// Between 0 and 1.
  double end_factor = 1.0;
  std::int64_t total_iters = 5;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(LinearLRConfig, start_factor, end_factor, total_iters, last_epoch)
  void validate() const;
};
/// Multiplies by a factor that goes from `start_factor` to `end_factor` within `total_iters` epochs.
class FABRIC_API LinearLR : public ConfiguredLR<LinearLRConfig> {
 public:
  using Config = LinearLRConfig;
  explicit LinearLR(torch::optim::Optimizer& optimizer, Config config = {});
  const char* name() const override { return "LinearLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

/// Settings of ExponentialLR.
struct FABRIC_API ExponentialLRConfig {
  /// Must be given.
  std::optional<double> gamma = {};
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(ExponentialLRConfig, gamma, last_epoch)
  void validate() const;
};
/// Multiplies by `gamma` every epoch.
class FABRIC_API ExponentialLR : public ConfiguredLR<ExponentialLRConfig> {
 public:
  using Config = ExponentialLRConfig;
  ExponentialLR(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "ExponentialLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

/// Settings of PolynomialLR.
struct FABRIC_API PolynomialLRConfig {
  std::int64_t total_iters = 5;
  double power = 1.0;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(PolynomialLRConfig, total_iters, power, last_epoch)
  void validate() const;
};
/// base_lr * (1 - epoch / total_iters) ^ power, and 0 from then on.
class FABRIC_API PolynomialLR : public ConfiguredLR<PolynomialLRConfig> {
 public:
  using Config = PolynomialLRConfig;
  explicit PolynomialLR(torch::optim::Optimizer& optimizer, Config config = {});
  const char* name() const override { return "PolynomialLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override;
  double closed_form_lr(std::size_t group) override;
};

}  // namespace fabric
