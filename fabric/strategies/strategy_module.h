#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/scope.h>
#include <fabric/base/value.h>
#include <fabric/export.h>
#include <fabric/state/sharding.h>

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace fabric {

class Strategy;

/// One call of a method of the user's module, its types hidden, so that a strategy can run things before and after it,
/// or run it several times. Lives on the caller's stack.
class FABRIC_API ForwardCall {
 public:
  using Visit = std::function<void(at::Tensor&)>;
  virtual ~ForwardCall() = default;
  /// Calls the method on `target` (the user's module or a replica of it) and keeps the result.
  virtual void run(torch::nn::Module& target) = 0;
  /// False when an argument's type is opaque, so that tensors may have been missed (see fabric/state/tensors.h).
  virtual bool for_each_input(const Visit& visit) = 0;
  virtual bool for_each_output(const Visit& visit) = 0;
  /// The same method with the same arguments and no result yet.
  virtual std::unique_ptr<ForwardCall> clone() const = 0;
};

/// What a strategy makes of a module: owned by the FabricModule wrapper, one per `setup`. Everything that is done for
/// one model is asked of it, so that a strategy keeps what it knows of a model here. The base is whole: it serves
/// strategies whose ranks hold the parameters as the user's module has them.
class FABRIC_API StrategyModule {
 public:
  StrategyModule(Strategy& strategy, std::shared_ptr<torch::nn::Module> module)
      : strategy_(strategy), module_(std::move(module)) {}
  virtual ~StrategyModule() = default;
  StrategyModule(const StrategyModule&) = delete;
  StrategyModule& operator=(const StrategyModule&) = delete;

  const std::shared_ptr<torch::nn::Module>& module() const { return module_; }
  Strategy& strategy() const { return strategy_; }

  // --- forward
  /// False when `call` would only run the method, so that the wrapper may do so itself.
  virtual bool intercepts_forward() const { return false; }
  /// Runs one forward pass (or another method) the strategy's way.
  virtual void call(ForwardCall& forward) { forward.run(*module_); }
  /// Opened around every call, conversions of its inputs and outputs left out; empty: nothing.
  const std::function<Scope()>& forward_scope() const { return forward_scope_; }
  void set_forward_scope(std::function<Scope()> scope) { forward_scope_ = std::move(scope); }

  // --- gradients
  /// Gradients stay local until the scope closes, which covers forward and backward; nothing when not `enabled`, or
  /// where there is no synchronisation to leave out.
  virtual Scope no_backward_sync(bool /*enabled*/) { return {}; }
  /// Both clip the gradients of `optimizer`'s parameters in place, unscaled. The norm of all gradients before clipping,
  /// over all ranks that hold a part of them.
  virtual at::Tensor clip_gradients_norm(torch::optim::Optimizer& optimizer, double max_norm, double norm_type,
                                         bool error_if_nonfinite);
  virtual void clip_gradients_value(torch::optim::Optimizer& optimizer, double clip_value);
  /// `requires_grad` of some parameters was changed since `setup`. Every rank calls it, between an optimizer step and
  /// the next forward pass. Strategies that synchronise gradients then expect them of those that require one.
  virtual void parameters_changed() {}

  // --- state; no communication, so that each may fail on its own
  /// Where a parameter or buffer of this module, as it is now, lies in the whole one; nothing: it is whole here. A
  /// strategy that spreads parameters over ranks says so here and nowhere else: saving, loading and the optimizers'
  /// state follow.
  virtual std::optional<Shard> shard_of(const at::Tensor&) const { return std::nullopt; }
  /// This rank's part.
  virtual StatePart state() const;
  /// Only the checks of a strict load; `state` holds whole tensors, which may still be in a file.
  virtual void check_state(const Value& state) const;
  /// Takes what is this rank's.
  virtual void load_state(const Value& state, bool strict = true);

 private:
  Strategy& strategy_;
  std::shared_ptr<torch::nn::Module> module_;
  std::function<Scope()> forward_scope_;
};

/// What Fabric::setup does with a module beside wrapping it.
struct SetupOptions {
  /// Moves the module to this rank's device; off: the module stays where it is.
  bool move_to_device = true;
};

/// An optimizer on its way to `setup`: made already, or to be made over the parameters as the strategy leaves them.
struct FABRIC_API OptimizerSource {
  std::shared_ptr<torch::optim::Optimizer> ready = {};
  std::function<std::shared_ptr<torch::optim::Optimizer>(std::vector<at::Tensor> parameters)> make = {};

  /// The optimizer, for a module that is set up. A parameter that it was given several times (a tied one, which a
  /// module lists under each of its names) it then holds once. Throws MisuseError when there is none.
  std::shared_ptr<torch::optim::Optimizer> take(const torch::nn::Module& module) const;
};

}  // namespace fabric
