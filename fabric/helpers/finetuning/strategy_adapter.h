#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <fabric/helpers/finetuning/finetuning_messages.h>
#include <fabric/helpers/finetuning/finetuning_schedule.h>
#include <fabric/helpers/finetuning/model_parameters.h>
#include <fabric/strategies/strategy.h>

namespace fabric {

class FinetuningScheduler;

/// What a strategy does differently when a schedule freezes, thaws, saves and restores. The base is whole: it serves
/// strategies whose parameters stay as the user's module has them (one device, ddp), and those that shard them in place
/// and say so (StrategyModule). For strategies that rename parameters derive from it and override the hooks that
/// differ. A strategy names its adapter itself (Strategy::finetuning_adapter). Hooks are called on every rank, in the
/// same order.
class FABRIC_API StrategyAdapter {
 public:
  using Names = std::vector<std::string>;
  /// What the adapter works on; filled in before any hook is called.
  struct Target {
    std::shared_ptr<torch::nn::Module> module;
    /// Null without Fabric.
    StrategyModule* strategy_module = nullptr;
    std::shared_ptr<Strategy> strategy;
    const ModelParameters* parameters = nullptr;
    FinetuningMessages messages;
  };

  virtual ~StrategyAdapter();
  virtual std::string name() const { return "base"; }
  void connect(Target target) { target_ = std::move(target); }

  /// The model is not frozen and the schedule not read yet; then: phase 0 is thawed and in the optimizer.
  virtual void before_init() {}
  virtual void after_init(FinetuningScheduler& /*scheduler*/) {}
  /// At the first epoch_start, helpers attached.
  virtual void before_fit_start(FinetuningScheduler& /*scheduler*/) {}
  /// The metric by which the best checkpoint is chosen; throw ConfigError for one that cannot be.
  virtual void validate_monitor_metric(const std::string& /*metric*/) {}

  // --- the schedule
  /// The names that entries of a schedule are matched with.
  virtual const ModelParameters& parameters_for_schedule() const { return *target_.parameters; }
  /// Checks of the whole expanded schedule; throws ConfigError.
  virtual void validate_schedule(const FinetuningSchedule& /*schedule*/) {}
  virtual FinetuningSchedule generate_schedule() const;
  /// The parameters that phase 0 really puts into the optimizer.
  virtual Names phase0_params(Names names) { return names; }

  // --- names: those of the schedule, and those the optimizer's parameters have
  virtual Names to_optimizer_names(const Names& names) const { return names; }
  virtual Names from_optimizer_names(const Names& names) const { return names; }

  // --- a transition
  /// Leaves exactly these parameters trainable. True when anything changed.
  virtual bool exec_phase(const Names& thawed);
  /// After requires_grad changed on this rank: the base tells the strategy, which may communicate.
  virtual void parameters_changed();
  /// The best checkpoint as it was read. An exception is a warning, and the checkpoint is used as it is.
  virtual void before_restore_model(Value& /*checkpoint*/) {}
  /// The optimizer's state just before it is loaded.
  virtual void before_restore_optimizer(Value& /*state*/) {}
  virtual void restore_model(const Value& state);
  virtual void restore_optimizer(torch::optim::Optimizer& optimizer, const Value& state);

 protected:
  const Target& target() const { return target_; }

 private:
  Target target_;
};

/// Adapters by name; "base" is there from the start.
class FABRIC_API StrategyAdapterRegistry {
 public:
  /// Gets `strategy_adapter_cfg`; throws ConfigError for settings it does not know.
  using Make = std::function<std::shared_ptr<StrategyAdapter>(const Tree& config)>;

  static StrategyAdapterRegistry& instance();
  /// Throws ConfigError when the name is taken, unless `override_existing`.
  void register_adapter(const std::string& name, Make make, bool override_existing = false);
  /// `name` may be written with a scope, "module:Class", "module.Class" or "module::Class"; all three mean the same.
  /// Throws ConfigError for a malformed or unknown name.
  std::shared_ptr<StrategyAdapter> make(const std::string& name, const Tree& config) const;
  std::vector<std::string> available_adapters() const;
  void remove(const std::string& name);

 private:
  StrategyAdapterRegistry();
};

/// The adapter for a strategy: the one that `custom` names for it, or the one that the strategy itself names. With
/// `custom` given, a strategy that it does not name is a ConfigError. A strategy without an adapter is a ConfigError,
/// or a warning with `allow_untested`.
struct AdapterRequest {
  std::string strategy;
  /// Strategy::finetuning_adapter.
  std::string built_in = {};
  std::map<std::string, std::string> custom;
  Tree config = Tree::Map{};
  bool allow_untested = false;
};
FABRIC_API std::shared_ptr<StrategyAdapter> resolve_strategy_adapter(const AdapterRequest& request,
                                                                     const FinetuningMessages& messages);

}  // namespace fabric
