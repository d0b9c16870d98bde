#include "strategies/sharded/materialize.h"

#include <memory>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <torch/nn.h>

#include <fabric/base/error.h>
#include <fabric/dispatch/operator_hooks.h>

#include "strategies/sharded/unit.h"

namespace fabric::sharded {
namespace {

struct OnMetaDevice : dispatch::Client {
  void operator_called(dispatch::OperatorCall& call) override {
    const auto& arguments = call.op().schema().arguments();
    for (std::size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].name() == "device") call.set_argument(i, c10::Device(c10::kMeta));
    call.proceed();
  }
};

bool has_meta(const torch::nn::Module& module) {
  for (const auto& tensor : module.parameters(/*recurse=*/false))
    if (tensor.is_meta()) return true;
  for (const auto& tensor : module.buffers(/*recurse=*/false))
    if (tensor.defined() && tensor.is_meta()) return true;
  return false;
}

template <class... Layers>
bool reset_if_any_of(torch::nn::Module& module) {
  auto try_one = [&](auto* layer) {
    if (layer) layer->reset_parameters();
    return layer != nullptr;
  };
  return (try_one(dynamic_cast<Layers*>(&module)) || ...);
}

bool reset_own_layer(torch::nn::Module& module) {
  using namespace torch::nn;
  if (auto* attention = dynamic_cast<MultiheadAttentionImpl*>(&module)) {
    attention->_reset_parameters();
    return true;
  }
  return reset_if_any_of<LinearImpl, BilinearImpl, EmbeddingImpl, EmbeddingBagImpl, LayerNormImpl, GroupNormImpl,
                         Conv1dImpl, Conv2dImpl, Conv3dImpl, ConvTranspose1dImpl, ConvTranspose2dImpl,
                         ConvTranspose3dImpl, BatchNorm1dImpl, BatchNorm2dImpl, BatchNorm3dImpl, InstanceNorm1dImpl,
                         InstanceNorm2dImpl, InstanceNorm3dImpl>(module);
}

void give_memory(const at::Tensor& tensor, c10::Device device) {
  if (!tensor.defined() || !tensor.is_meta()) return;
  swap_content(tensor, at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device)));
}

}  // namespace

Scope build_on_meta() {
  auto active = std::make_shared<std::unique_ptr<dispatch::Activation>>(
      std::make_unique<dispatch::Activation>(dispatch::Level::above_autograd, std::make_shared<OnMetaDevice>()));
  return Scope([active] { active->reset(); });
}

// A module's parts come before itself: it may have something to say about their values.
void materialize(const UnitPlan& plan, c10::Device device, const std::function<void(torch::nn::Module&)>& reset) {
  at::NoGradGuard no_grad;
  std::vector<std::shared_ptr<torch::nn::Module>> empty;
  for (auto owner = plan.owners.rbegin(); owner != plan.owners.rend(); ++owner)
    if (has_meta(**owner)) empty.push_back(*owner);
  for (const auto& owner : empty) {
    for (const auto& tensor : owner->parameters(/*recurse=*/false)) give_memory(tensor, device);
    for (const auto& tensor : owner->buffers(/*recurse=*/false)) give_memory(tensor, device);
  }
  for (const auto& owner : empty) {
    if (reset) {
      reset(*owner);
    } else if (!reset_own_layer(*owner)) {
      throw MisuseError("a module of class " + owner->name() + " in unit '" + plan.name +
                        "' was built without storage, and how it is initialised is not known. Give "
                        "FSDPStrategy::Config::reset_parameters, a function that fills a module's own parameters and "
                        "buffers, or build it outside of init_module(empty_init = true)");
    }
  }
}

}  // namespace fabric::sharded
