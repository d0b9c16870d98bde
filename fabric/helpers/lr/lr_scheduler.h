#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/optim/optimizer.h>

#include <fabric/config.h>
#include <fabric/optim/optimizer_group.h>
#include <fabric/state/state.h>

namespace fabric {

/// Sets the learning rates of an optimizer's groups, step by step, as the class of the same name in
/// `torch.optim.lr_scheduler` does: making one does the first step, `step()` after each epoch (or batch, as the class
/// asks) the next. LibTorch's own torch::optim::LRScheduler knows no initial learning rates, no growing groups and no
/// state, so this is no relative of it.
///
/// The optimizer is borrowed: it must outlive the scheduler, or be replaced by `rebind`. Groups that are added to it or
/// taken from it must be told with `grow` and `shrink`; a step with another number of groups throws MisuseError.
///
/// For a class of one's own: derive, give `name` and `next_lr`, and call `start` at the end of the constructor.
class FABRIC_API LRScheduler : public Stateful {
 public:
  LRScheduler(const LRScheduler&) = delete;
  LRScheduler& operator=(const LRScheduler&) = delete;

  /// The class, "StepLR"; part of the state.
  virtual const char* name() const = 0;
  /// The next step. Throws MisuseError when the class needs a metric.
  void step() { advance(std::nullopt); }
  /// The same with the metric that ReduceLROnPlateau watches; other classes ignore it. On several ranks give each the
  /// same number, or their learning rates part.
  void step(double metric) { advance(metric); }
  virtual bool needs_metric() const { return false; }

  /// How many steps were made since the first; 0 for a new scheduler.
  std::int64_t last_epoch() const { return last_epoch_; }
  /// The learning rates of the last step, by group.
  const std::vector<double>& last_lrs() const { return last_lrs_; }
  /// What formulas start from, by group; usually the initial learning rates.
  const std::vector<double>& base_lrs() const { return base_lrs_; }
  virtual void set_base_lrs(std::vector<double> lrs);
  /// Shared with the other schedulers of this optimizer, NaN where not set; see shared_initial_lrs.
  const std::vector<double>& initial_lrs() const { return *initial_lrs_; }
  void set_initial_lrs(std::vector<double> lrs) { *initial_lrs_ = std::move(lrs); }
  torch::optim::Optimizer& optimizer() const { return *optimizer_; }

  // --- groups that change while training
  /// Tells that one group was appended to the optimizer. `initial_lr` becomes its initial and base learning rate; what
  /// else is kept per group is padded: functions with the last one, `min_lr` with the first, the bounds of CyclicLR and
  /// OneCycleLR in the first group's proportions. The group's present learning rate stays.
  virtual void grow(double initial_lr);
  /// Forgets all groups but the first `groups`.
  virtual void shrink(std::size_t groups);
  /// Works on another optimizer from now on, whose groups correspond to those of the old one. Does no step and changes
  /// no learning rate.
  virtual void rebind(torch::optim::Optimizer& optimizer);
  /// As if made anew over the optimizer's present groups: their learning rates become the initial ones, and the first
  /// step is done.
  void restart();

  /// Everything but the optimizer's own learning rates, which its state holds: settings, last_epoch, base and initial
  /// learning rates, and the name of the class.
  Value state_dict() const override;
  /// Goes on from where the state was saved, with the settings that it holds. Takes as many groups as the state has;
  /// bring the optimizer to the same number. Throws CheckpointKeyError, with nothing changed, for the state of another
  /// class and for one that lacks entries.
  void load_state_dict(const Value& state) override;

 protected:
  explicit LRScheduler(torch::optim::Optimizer& optimizer)
      : optimizer_(&optimizer), initial_lrs_(shared_initial_lrs(optimizer)) {}

  /// The first step, to be called at the end of a constructor. With `last_epoch` -1 groups without an initial learning
  /// rate get their present one; otherwise it must be there, or MisuseError is thrown.
  void start(std::int64_t last_epoch);
  /// What `restart` does once the initial learning rates are set.
  virtual void start_over() { start(-1); }
  /// The learning rate of a group at last_epoch(), out of the one before it.
  virtual double next_lr(std::size_t group, double lr) = 0;
  /// The same out of nothing but the base learning rate, where there is such a formula; SequentialLR uses it.
  virtual double closed_form_lr(std::size_t group) { return next_lr(group, get_lr(optimizer_->param_groups()[group])); }
  /// Called after the learning rates were set; for what is cycled beside them.
  virtual void update_momentum() {}
  /// One step.
  virtual void advance(std::optional<double> metric);
  /// Goes to an epoch by the closed form.
  virtual void jump(std::int64_t epoch) { update(epoch, true); }
  /// The step that making a scheduler does, and its undoing, which leaves the learning rates alone.
  virtual void initial_step();
  virtual void undo_initial_step() { --last_epoch_; }
  /// True during the first step.
  bool is_initial() const { return initial_; }
  /// What a class adds to the state. Loading must read everything before it changes anything.
  virtual void save_fields(Value& /*state*/) const {}
  virtual void load_fields(const Value& /*state*/) {}

  void update(std::int64_t epoch, bool closed_form);
  void require_groups() const;
  void note_lrs();
  std::vector<double> group_lrs() const;

  std::int64_t last_epoch_ = -1;
  std::vector<double> base_lrs_;
  std::vector<double> last_lrs_;

 private:
  friend class CompositeLR;
  friend class SequentialLR;
  friend class ChainedScheduler;
  torch::optim::Optimizer* optimizer_;
  std::shared_ptr<std::vector<double>> initial_lrs_;
  std::vector<double> next_lrs_;
  bool initial_ = false;
};

/// A scheduler with a settings struct, which is part of its state, as in Python.
template <class Settings>
class ConfiguredLR : public LRScheduler {
 public:
  const Settings& config() const { return config_; }

 protected:
  ConfiguredLR(torch::optim::Optimizer& optimizer, Settings config)
      : LRScheduler(optimizer), config_(std::move(config)) {
    config_.validate();
  }
  void save_fields(Value& state) const override { state["config"] = to_value(fabric::to_tree(config_)); }
  void load_fields(const Value& state) override { config_ = from_tree<Settings>(fabric::to_tree(state.at("config"))); }
  Settings config_;
};

/// One number for all groups, or one for each; in files `0.1` or `[0.1, 0.01]`. Without either it was not given.
class FABRIC_API PerGroup {
 public:
  PerGroup() : one_for_all_(false) {}
  PerGroup(double value) : values_{value} {}
  PerGroup(std::vector<double> values) : values_(std::move(values)), one_for_all_(false) {}
  PerGroup(std::initializer_list<double> values) : PerGroup(std::vector<double>(values)) {}

  /// One number for each of `groups`. Throws ConfigError, naming `what`, for a list of another length.
  std::vector<double> expand(const std::string& what, std::size_t groups) const;
  bool is_given() const { return !values_.empty(); }
  bool is_list() const { return is_given() && !one_for_all_; }
  const std::vector<double>& values() const { return values_; }

  static PerGroup from_tree(const Tree& tree);
  Tree to_tree() const;

 private:
  std::vector<double> values_;
  bool one_for_all_ = true;
};

}  // namespace fabric
