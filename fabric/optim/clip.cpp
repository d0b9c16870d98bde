#include <fabric/optim/clip.h>

#include <cmath>
#include <optional>
#include <string>

#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <fabric/base/error.h>

namespace fabric::optim {
namespace {

// Gradients of one device and dtype: what one kernel over a list takes.
struct Batch {
  c10::Device device;
  c10::ScalarType dtype;
  std::vector<at::Tensor> gradients;
};

Batch& batch_for(std::vector<Batch>& batches, const at::Tensor& gradient) {
  for (auto& batch : batches)
    if (batch.device == gradient.device() && batch.dtype == gradient.scalar_type()) return batch;
  return batches.emplace_back(Batch{gradient.device(), gradient.scalar_type(), {}});
}

std::vector<Batch> batches_of(const std::vector<at::Tensor>& parameters) {
  std::vector<Batch> batches;
  for (const auto& parameter : parameters) {
    at::Tensor& gradient = parameter.mutable_grad();
    if (!gradient.defined()) continue;
    // The rows of a sparse gradient may repeat; only their sums are the gradient.
    if (gradient.is_sparse() && !gradient.is_coalesced()) gradient = gradient.coalesce();
    at::Tensor numbers = gradient.is_sparse() ? gradient._values() : gradient;
    batch_for(batches, numbers).gradients.push_back(std::move(numbers));
  }
  return batches;
}

// Sums of squares of 16-bit numbers soon leave their range.
std::optional<c10::ScalarType> norm_dtype(c10::ScalarType dtype) {
  if (dtype == c10::ScalarType::Half || dtype == c10::ScalarType::BFloat16) return c10::ScalarType::Float;
  return std::nullopt;
}

at::Tensor norm_of(const std::vector<Batch>& batches, double norm_type) {
  if (!(norm_type > 0))
    throw MisuseError("norm_type is " + std::to_string(norm_type) + ", it must be positive or infinity");
  std::vector<at::Tensor> norms;
  for (const auto& batch : batches)
    for (auto& norm : at::_foreach_norm(batch.gradients, norm_type, norm_dtype(batch.dtype)))
      norms.push_back(std::move(norm));
  if (norms.empty()) return at::zeros({});
  auto widest = c10::ScalarType::Float;
  for (const auto& norm : norms)
    if (norm.scalar_type() == c10::ScalarType::Double) widest = c10::ScalarType::Double;
  for (auto& norm : norms) norm = norm.to(norms.front().device(), widest);
  return at::linalg_vector_norm(at::stack(norms), norm_type);
}

void scale_to_norm(const std::vector<Batch>& batches, const at::Tensor& total_norm, double max_norm) {
  if (!(max_norm >= 0)) throw MisuseError("max_norm is " + std::to_string(max_norm) + ", it must not be negative");
  // A factor of 1 is multiplied, too: asking whether it is one would wait for the device.
  at::Tensor factor = total_norm.add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0);
  for (const auto& batch : batches)
    at::_foreach_mul_(batch.gradients, factor.to(batch.device, norm_dtype(batch.dtype).value_or(batch.dtype)));
}

}  // namespace

at::Tensor total_grad_norm(const std::vector<at::Tensor>& parameters, double norm_type) {
  c10::NoGradGuard no_grad;
  return norm_of(batches_of(parameters), norm_type);
}

void scale_grads_to_norm(const std::vector<at::Tensor>& parameters, const at::Tensor& total_norm, double max_norm) {
  c10::NoGradGuard no_grad;
  scale_to_norm(batches_of(parameters), total_norm, max_norm);
}

at::Tensor clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type,
                          bool error_if_nonfinite) {
  c10::NoGradGuard no_grad;
  auto batches = batches_of(parameters);
  at::Tensor total = norm_of(batches, norm_type);
  if (error_if_nonfinite && !std::isfinite(total.item<double>()))
    throw MisuseError("the gradients' norm is " + std::to_string(total.item<double>()) +
                      ", so that they cannot be clipped. Find out where the loss stops being finite, or pass "
                      "error_if_nonfinite=false to go on");
  scale_to_norm(batches, total, max_norm);
  return total;
}

void clip_grad_value(const std::vector<at::Tensor>& parameters, double clip_value) {
  if (!(clip_value >= 0))
    throw MisuseError("clip_value is " + std::to_string(clip_value) + ", it must not be negative");
  c10::NoGradGuard no_grad;
  for (const auto& batch : batches_of(parameters)) {
    at::_foreach_clamp_min_(batch.gradients, -clip_value);
    at::_foreach_clamp_max_(batch.gradients, clip_value);
  }
}

}  // namespace fabric::optim
