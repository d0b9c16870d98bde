#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <fabric/base/scope.h>
#include <fabric/config.h>
#include <fabric/export.h>
#include <fabric/strategies/activation.h>
#include <fabric/strategies/strategy_module.h>

namespace fabric {

/// Activation checkpointing of a module whose class knows nothing of it. Each of its units (its blocks) is a region
/// that is computed again in the backward pass. C++ modules tell nobody when they are called, so a region is found by
/// operators: it begins where one is given a parameter of the unit, and ends where one is given a parameter of another.
/// @experimental: run on the CPU; not yet on GPUs.
class FABRIC_API ActivationCheckpointing {
 public:
  struct Config {
    /// "full" (all of a unit is computed again), "selective" (but for costly operators), "none".
    std::string mode = "full";
    /// Patterns of dotted names or class names of the units. Empty: the children of module lists and sequences, or of
    /// the root where there are none.
    std::vector<std::string> units = {};
    /// Of "selective": the operators whose results are kept. Empty: default_saved_operators().
    std::vector<std::string> save = {};
    /// Of "selective": products with a Linear whose name holds one of these texts, or with any weight of the same
    /// shape in the same unit, are always computed again. A module with such a name must be a Linear, or holds none of
    /// its own.
    std::vector<std::string> recompute = {"moe.router.gate"};
    /// Of "selective": of the products without a bias, only every second one is kept.
    bool every_second_mm = true;
    bool preserve_rng_state = true;
    bool determinism_check = true;
    /// Empty: the second run ends when it has what is needed, other than in "selective" and with a policy.
    std::optional<bool> early_stop = {};
    /// What is kept lies in the host's memory.
    bool offload = false;
    /// Notes what each region keeps and computes again, at some cost for each operator.
    bool report = false;
    /// In code, instead of `units`: a function of name and module, or fabric::Unit<BlockImpl>().
    std::function<bool(const std::string& name, const torch::nn::Module& module)> unit_if = {};
    /// In code, instead of `mode`: makes a policy of your own for each run of a region.
    std::function<std::unique_ptr<SavePolicy>()> policy = {};
    bool is_on() const { return mode != "none" || policy; }
    /// Throws ConfigError.
    void validate() const;
    FABRIC_FIELDS(Config, mode, units, save, recompute, every_second_mm, preserve_rng_state, determinism_check,
                  early_stop, offload, report)
  };

  /// Throws ConfigError for settings that fit nothing in the module. Before parameters are replaced it must be made
  /// anew.
  ActivationCheckpointing(const torch::nn::Module& module, Config config);
  ~ActivationCheckpointing();
  ActivationCheckpointing(const ActivationCheckpointing&) = delete;
  ActivationCheckpointing& operator=(const ActivationCheckpointing&) = delete;

  /// Finds the regions of what this thread runs until the scope closes; nothing where no gradients are computed. Opened
  /// and closed on one thread, like a block.
  Scope forward_pass();
  /// `run()`, a forward pass of the module.
  template <class Run>
  auto operator()(Run&& run) {
    Scope pass = forward_pass();
    return run();
  }
  const Config& config() const;
  std::vector<std::string> units() const;
  /// Of the last forward pass that has ended, in the order of its regions. Empty without the setting `report`.
  std::vector<CheckpointReport> report() const;
  /// The same as a table.
  std::string describe() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// Of a model that is set up: all its forward passes.
FABRIC_API std::shared_ptr<ActivationCheckpointing> apply_activation_checkpointing(
    StrategyModule& model, ActivationCheckpointing::Config config = {});
/// `model`: what Fabric::setup returned. Its calls are checkpointed from now on; another call replaces the settings,
/// and mode "none" ends it.
template <class M>
requires requires(const M& model) { model.strategy_module(); }
std::shared_ptr<ActivationCheckpointing> apply_activation_checkpointing(const M& model,
                                                                        ActivationCheckpointing::Config config = {}) {
  return apply_activation_checkpointing(model.strategy_module(), std::move(config));
}
/// A module without Fabric, in its holder or by reference. Calls go through what this returns:
/// `auto checkpointed = fabric::apply_activation_checkpointing(net); auto out = (*checkpointed)([&] { return net(x);
/// });`
[[nodiscard]] inline std::shared_ptr<ActivationCheckpointing> apply_activation_checkpointing(
    const torch::nn::Module& module, ActivationCheckpointing::Config config = {}) {
  return std::make_shared<ActivationCheckpointing>(module, std::move(config));
}
template <class M>
requires torch::detail::is_module_holder<M>::value [[nodiscard]] std::shared_ptr<ActivationCheckpointing>
apply_activation_checkpointing(const M& holder, ActivationCheckpointing::Config config = {}) {
  return std::make_shared<ActivationCheckpointing>(*holder, std::move(config));
}

}  // namespace fabric
