#include <fabric/plugins/precision/true_precision.h>

#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include "plugins/precision/default_dtype.h"

namespace fabric {
namespace {

// nn::Module::to would convert integer buffers, too, such as a batch norm's counter.
void convert(at::Tensor& tensor, c10::ScalarType dtype) {
  if (!tensor.defined() || !tensor.is_floating_point() || tensor.scalar_type() == dtype) return;
  at::Tensor gradient = tensor.grad();
  tensor.mutable_grad().reset();
  tensor.set_data(tensor.to(dtype));
  if (gradient.defined()) tensor.mutable_grad() = gradient.to(dtype);
}

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

void TruePrecision::convert_module(torch::nn::Module& module) {
  c10::NoGradGuard no_grad;
  for (auto& parameter : module.parameters()) convert(parameter, dtype_);
  for (auto& buffer : module.buffers()) convert(buffer, dtype_);
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
