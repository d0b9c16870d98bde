#pragma once

#include <optional>
#include <string>

#include <fabric/base/scope.h>
#include <fabric/strategies/strategy_module.h>

namespace fabric {

/// How whole parameters are asked for.
struct SummonOptions {
  /// What was changed in them is kept when the scope closes; every rank makes the same change.
  bool write_back = false;
  /// Only rank 0 gets them. Not together with write_back.
  bool rank_zero_only = false;
  /// The gradients are whole as well.
  bool with_gradients = false;
};

/// Until the scope closes the model's parameters are whole and may be read as in one process; nothing is done under
/// strategies that keep them so. Every rank opens and closes it, outside of forward and backward passes. The model may
/// be called inside without gradients. Throws MisuseError inside of a pass, and for options that exclude each other.
FABRIC_API Scope summon(StrategyModule& module, const SummonOptions& options = {});
/// `model`: what Fabric::setup returned.
template <class Model>
requires requires(const Model& model) { model.strategy_module().module(); }
Scope summon(const Model& model, const SummonOptions& options = {}) { return summon(model.strategy_module(), options); }

/// The name of the unit that a parameter is gathered with; nothing for one that the strategy leaves whole.
FABRIC_API std::optional<std::string> unit_of(const StrategyModule& module, const at::Tensor& parameter);

}  // namespace fabric
