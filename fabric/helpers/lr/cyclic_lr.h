#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <fabric/helpers/lr/lr_scheduler.h>

// Schedulers that step after each batch and can cycle the momentum against the learning rate: SGD's and RMSprop's
// `momentum`, the first of Adam's and AdamW's `betas`.
namespace fabric {

/// A momentum that goes between two bounds, which each group has of its own.
class FABRIC_API MomentumCycle {
 public:
  /// Throws ConfigError when the optimizer has no momentum. `set`: it becomes the upper bound now.
  void start(const char* name, torch::optim::Optimizer& optimizer, const PerGroup& base, const PerGroup& max, bool set);
  /// Throws ConfigError when `optimizer` has no momentum.
  static void require(const char* name, const torch::optim::Optimizer& optimizer);
  void grow();
  void shrink(std::size_t groups);
  double base(std::size_t group) const { return base_[group]; }
  double max(std::size_t group) const { return max_[group]; }
  Value state() const;
  void load(const Value& state);

 private:
  std::vector<double> base_;
  std::vector<double> max_;
};

/// Settings of CyclicLR.
struct FABRIC_API CyclicLRConfig {
  /// The bounds of the learning rate, which must be given; the cycle starts at the lower one.
  PerGroup base_lr = {};
  PerGroup max_lr = {};
  std::int64_t step_size_up = 2000;
  /// Empty: as step_size_up.
  std::optional<std::int64_t> step_size_down = {};
  /// "triangular"; "triangular2": half as high in each cycle; "exp_range": gamma^step as high.
  std::string mode = "triangular";
  double gamma = 1;
  /// How high the cycle is, instead of what `mode` says; not part of the state. Its argument is, by `scale_mode`
  /// "cycle", the number of the cycle, from 1, or "iterations", that of the step.
  std::function<double(double)> scale_fn = {};
  std::string scale_mode = "cycle";
  bool cycle_momentum = true;
  PerGroup base_momentum = 0.8;
  PerGroup max_momentum = 0.9;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(CyclicLRConfig, base_lr, max_lr, step_size_up, step_size_down, mode, gamma, scale_mode, cycle_momentum,
                base_momentum, max_momentum, last_epoch)
  void validate() const;
};
/// Goes up and down between two learning rates, linearly.
class FABRIC_API CyclicLR : public ConfiguredLR<CyclicLRConfig> {
 public:
  using Config = CyclicLRConfig;
  /// Throws ConfigError when momentum shall be cycled and the optimizer has none.
  CyclicLR(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "CyclicLR"; }
  void grow(double initial_lr) override;
  void shrink(std::size_t groups) override;
  /// Throws ConfigError when momentum shall be cycled and the optimizer has none.
  void rebind(torch::optim::Optimizer& optimizer) override;

 protected:
  double next_lr(std::size_t group, double lr) override;
  void start_over() override { begin(-1); }
  void update_momentum() override;
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;

 private:
  void begin(std::int64_t last_epoch);
  // How far up the cycle is at last_epoch_, between 0 and 1, and by how much its height is scaled there.
  struct Place {
    double height, scale;
  };
  Place place() const;
  std::vector<double> max_lrs_;
  MomentumCycle momentum_;
};

/// Settings of OneCycleLR.
struct FABRIC_API OneCycleLRConfig {
  /// The highest learning rate; must be given.
  PerGroup max_lr = {};
  /// Steps of the whole cycle; or else epochs * steps_per_epoch.
  std::optional<std::int64_t> total_steps = {};
  std::optional<std::int64_t> epochs = {};
  std::optional<std::int64_t> steps_per_epoch = {};
  /// Share of the steps in which the learning rate rises.
  double pct_start = 0.3;
  /// "cos" or "linear".
  std::string anneal_strategy = "cos";
  bool cycle_momentum = true;
  PerGroup base_momentum = 0.85;
  PerGroup max_momentum = 0.95;
  /// max_lr / div_factor is the initial learning rate, that / final_div_factor the last.
  double div_factor = 25;
  double final_div_factor = 1e4;
  /// Down to the initial learning rate as fast as it rose, then on to the last.
  bool three_phase = false;
  std::int64_t last_epoch = -1;
  FABRIC_FIELDS(OneCycleLRConfig, max_lr, total_steps, epochs, steps_per_epoch, pct_start, anneal_strategy,
                cycle_momentum, base_momentum, max_momentum, div_factor, final_div_factor, three_phase, last_epoch)
  void validate() const;
  std::int64_t steps() const { return total_steps ? *total_steps : *epochs * *steps_per_epoch; }
};
/// One rise to the highest learning rate and one long fall. A step beyond the last throws MisuseError.
class FABRIC_API OneCycleLR : public ConfiguredLR<OneCycleLRConfig> {
 public:
  using Config = OneCycleLRConfig;
  /// Throws ConfigError when momentum shall be cycled and the optimizer has none.
  OneCycleLR(torch::optim::Optimizer& optimizer, Config config);
  const char* name() const override { return "OneCycleLR"; }
  void grow(double initial_lr) override;
  void shrink(std::size_t groups) override;
  /// Throws ConfigError when momentum shall be cycled and the optimizer has none.
  void rebind(torch::optim::Optimizer& optimizer) override;

 protected:
  double next_lr(std::size_t group, double lr) override;
  void start_over() override { begin(-1); }
  void update_momentum() override;
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;

 private:
  // One part of the cycle: it ends after a step, and leads from one learning rate and momentum to another.
  enum class Bound { initial, max, min };
  struct Phase {
    double end;
    Bound from_lr, to_lr, from_momentum, to_momentum;
  };
  // The part that last_epoch_ is in, and how much of it is over.
  struct Place {
    const Phase* phase;
    double share;
  };
  void begin(std::int64_t last_epoch);
  void make_phases();
  Place place() const;
  double lr_of(Bound bound, std::size_t group) const;
  double momentum_of(Bound bound, std::size_t group) const;
  double between(double from, double to, double share) const;
  std::vector<Phase> phases_;
  std::vector<double> max_lrs_;
  std::vector<double> min_lrs_;
  MomentumCycle momentum_;
};

}  // namespace fabric
