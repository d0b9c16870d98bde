#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include <fabric/plugins/precision/grad_scaler.h>
#include <fabric/plugins/precision/precision.h>

namespace fabric {

/// Parameters in 32 bits, operators in 16 where that is safe (autocast): 16-mixed and bf16-mixed. Floating inputs
/// become 16-bit when they enter the model, floating outputs 32-bit when they leave it. 16-mixed scales the loss with a
/// GradScaler.
class FABRIC_API MixedPrecision : public Precision {
 public:
  /// `dtype` is kHalf or kBFloat16. Without a scaler kHalf makes one with its defaults. Throws ConfigError for another
  /// dtype, and for kBFloat16 with a scaler, which has nothing to do there.
  MixedPrecision(c10::ScalarType dtype, c10::DeviceType device_type, std::shared_ptr<GradScaler> scaler = nullptr);
  std::string name() const override;
  /// Null for bf16-mixed.
  const std::shared_ptr<GradScaler>& scaler() const { return scaler_; }

  Scope forward_context() override;
  at::Tensor convert_input(const at::Tensor& tensor) override;
  at::Tensor convert_output(const at::Tensor& tensor) override;
  bool changes_forward() const override { return true; }
  bool requires_backward_call() const override { return true; }

  void backward(const at::Tensor& loss, const BackwardOptions& options = {}) override;
  /// With a scaler the closure runs once, before the step. Throws MisuseError for LBFGS, which has to run it
  /// repeatedly.
  at::Tensor optimizer_step(torch::optim::Optimizer& optimizer, const Closure& closure) override;
  /// Throws MisuseError for an optimizer that unscales by itself, and when the optimizer's gradients were unscaled
  /// before the last backward pass and not set to zero since.
  void unscale_gradients(torch::optim::Optimizer& optimizer) override;
  void gradients_cleared(torch::optim::Optimizer& optimizer) override;
  bool will_skip_step(torch::optim::Optimizer& optimizer) override;
  bool step_was_skipped() const override;
  void set_found_inf_hook(std::function<void(at::Tensor&)> share) override;

  /// The scaler's state; empty without one.
  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  void finish_iteration() const;

  c10::ScalarType dtype_;
  c10::DeviceType device_type_;
  std::shared_ptr<GradScaler> scaler_;
};

}  // namespace fabric
