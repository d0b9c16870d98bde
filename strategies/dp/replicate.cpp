#include "strategies/dp/replicate.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

#include <fabric/base/error.h>

namespace fabric {
namespace {

// Takes a copy of `original` for its value; the copy's gradient goes back to where the original is.
struct TieToOriginal : torch::autograd::Function<TieToOriginal> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& original,
                            const at::Tensor* copy) {
    context->saved_data["device"] = original.device();
    return copy->variable_data();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto device = context->saved_data["device"].toDevice();
    return {gradients[0].defined() ? gradients[0].to(device) : gradients[0], at::Tensor()};
  }
};

// In place: the copy's tensor objects are members of its modules.
void tie(const torch::OrderedDict<std::string, at::Tensor>& originals,
         const torch::OrderedDict<std::string, at::Tensor>& copies) {
  for (const auto& item : originals) {
    const at::Tensor& original = item.value();
    if (!original.defined() || !original.requires_grad()) continue;
    const at::Tensor& copy = copies[item.key()];
    auto tied = TieToOriginal::apply(original, &copy);
    torch::autograd::impl::set_gradient_edge(copy, torch::autograd::impl::gradient_edge(tied));
  }
}

}  // namespace

std::shared_ptr<torch::nn::Module> replicate(const std::shared_ptr<torch::nn::Module>& module, c10::Device device) {
  std::shared_ptr<torch::nn::Module> copy;
  try {
    copy = module->clone(device);
  } catch (const c10::Error& error) {
    throw MisuseError("dp could not copy module " + module->name() + ": " + error.what_without_backtrace() +
                      ". Derive it (and its parts) from torch::nn::Cloneable<Type>, or use the strategy ddp");
  }
  at::AutoGradMode with_grad(true);
  tie(module->named_parameters(), copy->named_parameters());
  tie(module->named_buffers(), copy->named_buffers());
  return copy;
}

}  // namespace fabric
