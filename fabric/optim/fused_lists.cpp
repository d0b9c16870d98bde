#include "fabric/optim/fused_lists_internal.h"

namespace fabric::optim::detail {
namespace {

bool is_plain_number(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Float || dtype == c10::ScalarType::Double || dtype == c10::ScalarType::Half ||
         dtype == c10::ScalarType::BFloat16;
}

}  // namespace

bool has_fused_kernel(const at::Tensor& parameter, const at::Tensor& gradient) {
  return (parameter.is_cpu() || parameter.is_cuda()) && is_plain_number(parameter.scalar_type()) &&
         parameter.layout() == c10::kStrided && gradient.layout() == c10::kStrided &&
         parameter.is_non_overlapping_and_dense();
}

at::Tensor laid_out_like(const at::Tensor& parameter, const at::Tensor& tensor) {
  if (same_layout(parameter, tensor) && tensor.device() == parameter.device() &&
      tensor.scalar_type() == parameter.scalar_type())
    return tensor;
  return at::empty_like(parameter).copy_(tensor);
}

}  // namespace fabric::optim::detail
