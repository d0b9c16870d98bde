#pragma once

#include <memory>
#include <optional>
#include <utility>

#include <fabric/strategies/strategy_module.h>

#include "strategies/sharded/engine.h"

namespace fabric::sharded {

/// How the wrapper converts around the model.
struct Conversions {
  std::optional<at::ScalarType> inputs = {};
  std::optional<at::ScalarType> outputs = {};
};

/// What the user's wrapper owns.
class ShardedModule : public StrategyModule {
 public:
  ShardedModule(Strategy& strategy, std::shared_ptr<torch::nn::Module> module, std::shared_ptr<Engine> engine,
                Conversions conversions)
      : StrategyModule(strategy, std::move(module)), engine_(std::move(engine)), conversions_(conversions) {}

  Engine& engine() const { return *engine_; }
  bool intercepts_forward() const override {
    return !engine_->is_idle() || conversions_.inputs || conversions_.outputs;
  }
  void call(ForwardCall& forward) override;
  Scope no_backward_sync(bool enabled) override { return enabled ? engine_->no_sync() : Scope(); }
  at::Tensor clip_gradients_norm(torch::optim::Optimizer& optimizer, double max_norm, double norm_type,
                                 bool error_if_nonfinite) override;
  void parameters_changed() override;

  std::optional<Shard> shard_of(const at::Tensor& tensor) const override;
  StatePart state() const override;
  void check_state(const Value& state) const override;
  void load_state(const Value& state, bool strict) override;

 private:
  std::shared_ptr<Engine> engine_;
  Conversions conversions_;
};

}  // namespace fabric::sharded
