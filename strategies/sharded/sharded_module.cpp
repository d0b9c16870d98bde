#include "strategies/sharded/sharded_module.h"

#include <torch/optim/optimizer.h>

#include <algorithm>
#include <cmath>

#include <ATen/ops/maximum.h>
#include <ATen/ops/zeros.h>

#include <fabric/base/error.h>
#include <fabric/dispatch/operator_hooks.h>
#include <fabric/optim/clip.h>
#include <fabric/strategies/strategy.h>

namespace fabric {

Scope summon(StrategyModule& module, const SummonOptions& options) {
  auto* sharded = dynamic_cast<sharded::ShardedModule*>(&module);
  return sharded ? sharded->engine().summon(options) : Scope();
}

std::optional<std::string> unit_of(const StrategyModule& module, const at::Tensor& parameter) {
  const auto* sharded = dynamic_cast<const sharded::ShardedModule*>(&module);
  if (!sharded) return std::nullopt;
  for (const auto& unit : sharded->engine().units())
    for (const auto& known : unit->parameters())
      if (known->tensor.is_same(parameter)) return unit->name();
  return std::nullopt;
}

}  // namespace fabric

namespace fabric::sharded {

void ShardedModule::call(ForwardCall& forward) {
  auto convert = [](std::optional<at::ScalarType> type) {
    return [type](at::Tensor& tensor) {
      if (tensor.is_floating_point() && tensor.scalar_type() != *type) tensor = tensor.to(*type);
    };
  };
  if (conversions_.inputs) forward.for_each_input(convert(conversions_.inputs));
  {
    Scope pass = engine_->begin_forward();
    forward.run(*module());
    engine_->forward_ended();
  }
  if (conversions_.outputs) forward.for_each_output(convert(conversions_.outputs));
}

// Norms of parts add up to that of the whole by their powers; what every rank has whole counts once.
at::Tensor ShardedModule::clip_gradients_norm(torch::optim::Optimizer& optimizer, double max_norm, double norm_type,
                                              bool error_if_nonfinite) {
  const ProcessGroup& shards = engine_->settings().shards;
  if (shards.size() == 1)
    return StrategyModule::clip_gradients_norm(optimizer, max_norm, norm_type, error_if_nonfinite);
  Precision& precision = *strategy().precision();
  precision.unscale_gradients(optimizer);
  auto parameters = precision.main_params(optimizer);
  auto first_whole = std::partition(parameters.begin(), parameters.end(), [&](const at::Tensor& parameter) {
    return strategy().shard_of(parameter).has_value();
  });
  const bool largest = std::isinf(norm_type);
  auto power = [&](auto first, auto last) {
    auto norm = optim::total_grad_norm({first, last}, norm_type).to(at::kDouble);
    return largest ? norm : norm.pow(norm_type);
  };
  at::Tensor total = power(parameters.begin(), first_whole);
  shards.all_reduce_(total, largest ? ReduceOp::max : ReduceOp::sum);
  at::Tensor replicated = power(first_whole, parameters.end()).to(total.device());
  total = largest ? at::maximum(total, replicated) : (total + replicated).pow(1 / norm_type);
  // Infinities that a loss scaler is about to deal with are no error.
  if (error_if_nonfinite && !precision.will_skip_step(optimizer) && !std::isfinite(total.item<double>()))
    throw MisuseError("the gradients' norm is " + std::to_string(total.item<double>()) +
                      ", so that they cannot be clipped. Find out where the loss stops being finite, or pass "
                      "error_if_nonfinite=false to go on");
  optim::scale_grads_to_norm(parameters, total, max_norm);
  for (const auto& parameter : parameters)
    if (parameter.grad().defined())
      return total.to(parameter.grad().scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  return total;
}

void ShardedModule::parameters_changed() {
  engine_->release();
  std::string trained;
  for (const auto& unit : engine_->units())
    for (const auto& parameter : unit->parameters())
      if (parameter->tensor.requires_grad()) trained += parameter->name + ' ';
  if (engine_->settings().all.size() > 1)
    engine_->settings().all.require_same("parameters_changed", "trained: " + trained);
  engine_->follow_requires_grad();
}

std::optional<Shard> ShardedModule::shard_of(const at::Tensor& tensor) const {
  const Parameter* parameter = engine_->find(tensor);
  return parameter ? parameter->box() : std::nullopt;
}

StatePart ShardedModule::state() const {
  engine_->release();
  PieceAccess access;
  StatePart part = StrategyModule::state();
  // Others read these tensors, on threads of their own.
  for_each_leaf_tensor(part.values, [](at::Tensor& tensor, const std::string&) {
    if (dispatch::is_marked(tensor)) tensor = dispatch::unmarked(tensor);
  });
  return part;
}

void ShardedModule::check_state(const Value& state) const {
  engine_->release();
  PieceAccess access;
  StrategyModule::check_state(state);
}

void ShardedModule::load_state(const Value& state, bool strict) {
  engine_->release();
  PieceAccess access;
  StrategyModule::load_state(state, strict);
}

}  // namespace fabric::sharded
