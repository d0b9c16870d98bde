#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fabric/config.h>
#include <fabric/helpers/finetuning/strategy_adapter.h>
#include <fabric/strategies/activation_checkpointing.h>

namespace fabric {

/// Schedules over a model that FSDP shards. Parameters stay the module's own and each has its own gradient, so that a
/// phase may take some parameters of a unit or of a module and leave others. The model is sharded by `setup`, before
/// there is a schedule: what Python's adapters would wrap is compared with the units that there are.
class FABRIC_API FsdpAdapter : public StrategyAdapter {
 public:
  /// What an entry of `fsdp_plan` may ask for.
  struct PlanOptions {
    /// "composable", "wrapped", "wrapped_offload" (kept tensors on the host): activation checkpointing of these
    /// modules. Empty: none.
    std::string act_ckpt = {};
    /// These two are settings of the strategy; here they are a warning.
    std::optional<bool> reshard_after_forward = {};
    std::optional<bool> cpu_offload_policy = {};
    FABRIC_FIELDS(PlanOptions, act_ckpt, reshard_after_forward, cpu_offload_policy)
  };

  /// Settings: `awp_overrides`, names of modules or regular expressions matched at the start of names, each of which
  /// must be a unit of its own; `fsdp_plan`, a map of such to PlanOptions; `fsdp_default_kwargs`, PlanOptions for
  /// entries without. Throws ConfigError for others.
  explicit FsdpAdapter(const Tree& config);

  std::string name() const override { return "fsdp"; }
  /// Throws ConfigError for an entry that no module's name is like.
  void before_init() override;
  /// Throws ConfigError when the strategy shards nothing of phase 0.
  void validate_schedule(const FinetuningSchedule& schedule) override;
  /// Activation checkpointing that `fsdp_plan` asked for; null without.
  const std::shared_ptr<ActivationCheckpointing>& activation_checkpointing() const { return checkpointing_; }

 private:
  using Entry = std::pair<std::string, PlanOptions>;
  std::vector<std::string> modules_like(const std::string& entry) const;
  std::vector<std::string> check_entry(const std::string& setting, const std::string& entry) const;
  void require_own_unit(const std::string& setting, const std::string& module) const;
  void apply_checkpointing(const std::vector<std::string>& modules, const std::string& kind);

  std::vector<std::string> overrides_;
  std::vector<Entry> plan_;
  std::shared_ptr<ActivationCheckpointing> checkpointing_;
};

}  // namespace fabric
