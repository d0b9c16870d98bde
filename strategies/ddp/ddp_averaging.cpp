#include "strategies/ddp/ddp_averaging.h"

#include <torch/optim/optimizer.h>

#include <algorithm>

#include "strategies/ddp/ddp_engine.h"

namespace fabric::ddp {

ModelAveraging::ModelAveraging(const DDPStrategy::Config& config, ProcessGroup group, std::shared_ptr<Modules> modules)
    : config_{config.model_averaging_period, config.model_averaging_warmup},
      group_(std::move(group)),
      modules_(std::move(modules)) {
  modules_->gradients_local = config_.warmup_steps == 0;
}

ModelAverager& ModelAveraging::averager_of(const std::vector<at::Tensor>& params) {
  const void* first = params.empty() ? nullptr : params.front().unsafeGetTensorImpl();
  for (auto& [known, averager] : averagers_)
    if (known == first) return averager;
  return averagers_.emplace_back(first, ModelAverager(group_, config_)).second;
}

void ModelAveraging::after_step(torch::optim::Optimizer& optimizer) {
  std::vector<at::Tensor> params;
  for (const auto& group : optimizer.param_groups())
    params.insert(params.end(), group.params().begin(), group.params().end());
  bool averaged = averager_of(params).step(params);
  modules_->gradients_local =
      std::none_of(averagers_.begin(), averagers_.end(), [](const auto& item) { return item.second.in_warmup(); });
  if (!averaged) return;
  for (Engine* engine : modules_->engines)
    if (auto* buffers = engine->buffers()) buffers->broadcast(0);
}

}  // namespace fabric::ddp
