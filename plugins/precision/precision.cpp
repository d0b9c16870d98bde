#include <fabric/plugins/precision/precision.h>

#include <torch/optim/optimizer.h>

namespace fabric {

void Precision::backward(const at::Tensor& loss, const BackwardOptions& options) {
  std::optional<at::TensorList> inputs;
  if (!options.inputs.empty()) inputs = options.inputs;
  loss.backward(options.gradient, options.retain_graph, options.create_graph, inputs);
}

at::Tensor Precision::optimizer_step(torch::optim::Optimizer& optimizer, const Closure& closure) {
  return closure ? optimizer.step(closure) : optimizer.step();
}

std::vector<at::Tensor> Precision::main_params(torch::optim::Optimizer& optimizer) {
  std::vector<at::Tensor> params;
  for (const auto& group : optimizer.param_groups())
    params.insert(params.end(), group.params().begin(), group.params().end());
  return params;
}

}  // namespace fabric
