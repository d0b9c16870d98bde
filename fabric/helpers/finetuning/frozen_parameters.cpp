#include <fabric/helpers/finetuning/frozen_parameters.h>

#include <algorithm>

#include <torch/nn/modules/batchnorm.h>

namespace fabric {
namespace {

// With a momentum of 0 running statistics stay as they are, bit for bit; without the counter's member nothing is
// counted, while the registered buffer stays in the module's state.
template <class Norm>
void hold(Norm& norm, std::optional<double>& momentum, at::Tensor& counter) {
  momentum = norm.options.momentum();
  counter = norm.num_batches_tracked;
  norm.options.momentum(0.0);
  norm.num_batches_tracked = at::Tensor();
}

template <class Norm>
void release(Norm& norm, const std::optional<double>& momentum, const at::Tensor& counter) {
  norm.options.momentum(momentum);
  norm.num_batches_tracked = counter;
}

}  // namespace

FrozenBatchNorm::FrozenBatchNorm(std::shared_ptr<torch::nn::Module> module) : module_(std::move(module)) {
  auto watch = [&](auto* norm) {
    if (!norm || !norm->options.track_running_stats() || !norm->weight.defined()) return;
    auto momentum = std::make_shared<std::optional<double>>();
    auto counter = std::make_shared<at::Tensor>();
    layers_.push_back({[=] { hold(*norm, *momentum, *counter); }, [=] { release(*norm, *momentum, *counter); },
                       norm->parameters(), false});
  };
  for (const auto& child : module_->modules()) {
    watch(child->as<torch::nn::BatchNorm1d>());
    watch(child->as<torch::nn::BatchNorm2d>());
    watch(child->as<torch::nn::BatchNorm3d>());
  }
}

FrozenBatchNorm::~FrozenBatchNorm() { release_all(); }

void FrozenBatchNorm::update() {
  for (auto& layer : layers_) {
    const bool frozen = std::none_of(layer.parameters.begin(), layer.parameters.end(),
                                     [](const at::Tensor& tensor) { return tensor.requires_grad(); });
    if (frozen == layer.held) continue;
    frozen ? layer.hold() : layer.release();
    layer.held = frozen;
  }
}

void FrozenBatchNorm::release_all() {
  for (auto& layer : layers_)
    if (std::exchange(layer.held, false)) layer.release();
}

bool thaw_exactly(const ModelParameters& parameters, const std::vector<std::string>& names) {
  std::unordered_set<std::string> thawed(names.begin(), names.end());
  bool changed = false;
  for (const auto& name : parameters.names()) {
    at::Tensor tensor = parameters.tensor(name);
    const bool wanted = thawed.contains(name);
    if (tensor.requires_grad() == wanted) continue;
    tensor.set_requires_grad(wanted);
    // An optimizer skips what has no gradient, but would go on with one that is left over.
    if (!wanted) tensor.mutable_grad() = at::Tensor();
    changed = true;
  }
  return changed;
}

}  // namespace fabric
