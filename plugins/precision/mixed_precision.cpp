#include <fabric/plugins/precision/mixed_precision.h>

#include <c10/core/GradMode.h>
#include <torch/optim/lbfgs.h>

#include "plugins/precision/autocast.h"

namespace fabric {
namespace {

at::Tensor convert(const at::Tensor& tensor, c10::ScalarType dtype) {
  return tensor.defined() && tensor.is_floating_point() ? tensor.to(dtype) : tensor;
}

}  // namespace

MixedPrecision::MixedPrecision(c10::ScalarType dtype, c10::DeviceType device_type, std::shared_ptr<GradScaler> scaler)
    : dtype_(dtype), device_type_(device_type), scaler_(std::move(scaler)) {
  if (dtype == c10::ScalarType::BFloat16 && scaler_)
    throw ConfigError("bf16-mixed needs no GradScaler: bfloat16 has the range of 32 bits. Pass none, or use 16-mixed");
  if (dtype != c10::ScalarType::BFloat16 && dtype != c10::ScalarType::Half)
    throw ConfigError(std::string("mixed precision was given ") + c10::toString(dtype) + "; use kHalf or kBFloat16");
  if (dtype == c10::ScalarType::Half && !scaler_) scaler_ = std::make_shared<GradScaler>();
}

std::string MixedPrecision::name() const { return dtype_ == c10::ScalarType::Half ? "16-mixed" : "bf16-mixed"; }

Scope MixedPrecision::forward_context() { return autocast_scope(device_type_, dtype_); }
at::Tensor MixedPrecision::convert_input(const at::Tensor& tensor) { return convert(tensor, dtype_); }
at::Tensor MixedPrecision::convert_output(const at::Tensor& tensor) { return convert(tensor, c10::ScalarType::Float); }

// The scale changes when the next iteration begins and not after each step: several optimizers that step on the
// gradients of one loss must all divide by what that loss was multiplied with.
void MixedPrecision::finish_iteration() const {
  if (scaler_ && scaler_->needs_update()) scaler_->update();
}

void MixedPrecision::backward(const at::Tensor& loss, const BackwardOptions& options) {
  if (!scaler_) return Precision::backward(loss, options);
  finish_iteration();
  scaler_->before_backward();
  Precision::backward(scaler_->scale(loss), options);
  scaler_->after_backward();
}

at::Tensor MixedPrecision::optimizer_step(torch::optim::Optimizer& optimizer, const Closure& closure) {
  if (!scaler_ || !scaler_->enabled()) return Precision::optimizer_step(optimizer, closure);
  if (dynamic_cast<torch::optim::LBFGS*>(&optimizer))
    throw MisuseError(
        "LBFGS evaluates its closure several times a step and cannot work with a scaled loss: use precision "
        "'bf16-mixed' or "
        "'32-true', or another optimizer");
  at::Tensor loss;
  if (closure) {
    c10::AutoGradMode with_grad(true);
    loss = closure();
  }
  if (scaler_->has_stepped(optimizer)) finish_iteration();
  at::Tensor result = scaler_->step(optimizer);
  return closure ? loss : result;
}

void MixedPrecision::unscale_gradients(torch::optim::Optimizer& optimizer) {
  if (!scaler_ || !scaler_->enabled()) return;
  if (dynamic_cast<UnscalingOptimizer*>(&optimizer))
    throw MisuseError(
        "gradients cannot be clipped when the optimizer unscales them itself, inside its step: use an optimizer that "
        "does "
        "not, or precision 'bf16-mixed'");
  if (!scaler_->is_unscaled(optimizer)) scaler_->unscale_(optimizer);
}

void MixedPrecision::gradients_cleared(torch::optim::Optimizer& optimizer) {
  if (scaler_) scaler_->discard(optimizer);
}

bool MixedPrecision::will_skip_step(torch::optim::Optimizer& optimizer) {
  return scaler_ && scaler_->is_unscaled(optimizer) && scaler_->found_inf(optimizer);
}

bool MixedPrecision::step_was_skipped() const { return scaler_ && scaler_->step_was_skipped(); }

void MixedPrecision::set_found_inf_hook(std::function<void(at::Tensor&)> share) {
  if (scaler_) scaler_->set_found_inf_hook(std::move(share));
}

Value MixedPrecision::state_dict() const {
  finish_iteration();
  return scaler_ ? scaler_->state_dict() : Value(Value::Map{});
}

void MixedPrecision::load_state_dict(const Value& state) {
  if (scaler_) scaler_->load_state_dict(state);
}

}  // namespace fabric
