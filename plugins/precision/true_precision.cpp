#include <fabric/plugins/precision/true_precision.h>

#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "plugins/precision/default_dtype.h"

namespace fabric {
namespace {

// What LibTorch's Module::to would change although a precision has nothing to do with it: integer tensors (a batch
// norm's counter), complex ones, and that gradients keep the old type.
class Exceptions {
 public:
  Exceptions(torch::nn::Module& module, c10::ScalarType dtype) : dtype_(dtype) {
    for (auto& parameter : module.parameters()) look_at(parameter);
    for (auto& buffer : module.buffers()) look_at(buffer);
  }
  ~Exceptions() {
    for (auto& [tensor, content] : contents_)
      if (tensor.scalar_type() != content.scalar_type()) tensor.set_data(content);
    for (auto& [tensor, gradient] : gradients_) tensor.mutable_grad() = gradient.to(tensor.scalar_type());
  }
  Exceptions(const Exceptions&) = delete;
  Exceptions& operator=(const Exceptions&) = delete;
  bool has_complex() const {
    return std::any_of(contents_.begin(), contents_.end(), [](const auto& item) { return item.second.is_complex(); });
  }

 private:
  void look_at(at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!tensor.is_floating_point()) {
      contents_.emplace_back(tensor, tensor.detach());
    } else if (tensor.grad().defined() && tensor.scalar_type() != dtype_) {
      gradients_.emplace_back(tensor, tensor.grad());
      tensor.mutable_grad().reset();
    }
  }

  c10::ScalarType dtype_;
  std::vector<std::pair<at::Tensor, at::Tensor>> contents_, gradients_;
};

// LibTorch warns of the imaginary part that a conversion of complex tensors loses; they get it back.
struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

const char* name_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return "64-true";
    case c10::ScalarType::Float:
      return "32-true";
    case c10::ScalarType::Half:
      return "16-true";
    case c10::ScalarType::BFloat16:
      return "bf16-true";
    default:
      return nullptr;
  }
}

}  // namespace

TruePrecision::TruePrecision(c10::ScalarType dtype) : dtype_(dtype) {
  if (!name_of(dtype))
    throw ConfigError(std::string("no precision keeps parameters as ") + c10::toString(dtype) +
                      "; use kDouble, kFloat, kHalf or kBFloat16");
}

HalfPrecision::HalfPrecision(c10::ScalarType dtype) : TruePrecision(dtype) {
  if (dtype != c10::ScalarType::Half && dtype != c10::ScalarType::BFloat16)
    throw ConfigError(std::string("HalfPrecision was given ") + c10::toString(dtype) + "; use kHalf or kBFloat16");
}

std::string TruePrecision::name() const { return name_of(dtype_); }

// By the module's own `to`, which may have more to convert than what it registered: a TorchScript module inside, say.
void TruePrecision::convert_module(torch::nn::Module& module) {
  c10::NoGradGuard no_grad;
  Exceptions kept(module, dtype_);
  Silence silence;
  std::optional<c10::WarningUtils::WarningHandlerGuard> guard;
  if (kept.has_complex()) guard.emplace(&silence);
  module.to(dtype_);
}

Scope TruePrecision::tensor_init_context() { return default_dtype_scope(dtype_); }
Scope TruePrecision::forward_context() { return default_dtype_scope(dtype_); }

at::Tensor TruePrecision::convert_input(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_floating_point() ? tensor.to(dtype_) : tensor;
}

// Called after the forward context has ended: the default dtype is the user's again.
at::Tensor TruePrecision::convert_output(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_floating_point() ? tensor.to(c10::get_default_dtype_as_scalartype()) : tensor;
}

}  // namespace fabric
