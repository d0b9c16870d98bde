#include <fabric/strategies/strategy_module.h>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <unordered_set>

#include <fabric/base/error.h>
#include <fabric/optim/clip.h>
#include <fabric/state/state.h>
#include <fabric/strategies/strategy.h>

namespace fabric {

at::Tensor StrategyModule::clip_gradients_norm(torch::optim::Optimizer& optimizer, double max_norm, double norm_type,
                                               bool error_if_nonfinite) {
  Precision& precision = *strategy_.precision();
  precision.unscale_gradients(optimizer);
  // Infinities that a loss scaler is about to deal with are no error.
  bool complain = error_if_nonfinite && !precision.will_skip_step(optimizer);
  return optim::clip_grad_norm(precision.main_params(optimizer), max_norm, norm_type, complain);
}

void StrategyModule::clip_gradients_value(torch::optim::Optimizer& optimizer, double clip_value) {
  Precision& precision = *strategy_.precision();
  precision.unscale_gradients(optimizer);
  optim::clip_grad_value(precision.main_params(optimizer), clip_value);
}

StatePart StrategyModule::state() const {
  return module_part(*module_, [this](const at::Tensor& tensor) { return shard_of(tensor); });
}

void StrategyModule::check_state(const Value& state) const {
  check_module_state_dict(*module_, state, [this](const at::Tensor& tensor) { return shard_of(tensor); });
}

void StrategyModule::load_state(const Value& state, bool strict) {
  load_module_state_dict(*module_, state, strict, [this](const at::Tensor& tensor) { return shard_of(tensor); });
}

std::shared_ptr<torch::optim::Optimizer> OptimizerSource::take(const torch::nn::Module& module) const {
  auto optimizer = make ? make(module.parameters()) : ready;
  if (!optimizer) throw MisuseError("setup was given an empty optimizer");
  // LibTorch's optimizers step a parameter once for each time that it is listed.
  std::unordered_set<const void*> seen;
  for (auto& group : optimizer->param_groups())
    std::erase_if(group.params(),
                  [&](const at::Tensor& parameter) { return !seen.insert(parameter.unsafeGetTensorImpl()).second; });
  return optimizer;
}

}  // namespace fabric
