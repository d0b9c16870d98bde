#pragma once

#include <c10/core/ScalarType.h>

#include <fabric/plugins/precision/precision.h>

namespace fabric {

/// Parameters and operators in one format: 64-true, 16-true and bf16-true. Floating parameters and buffers are
/// converted at setup, floating inputs when they enter the model, floating outputs to the default dtype when they leave
/// it.
class FABRIC_API TruePrecision : public Precision {
 public:
  /// Throws ConfigError for anything but kDouble, kFloat, kHalf and kBFloat16.
  explicit TruePrecision(c10::ScalarType dtype);
  std::string name() const override;
  c10::ScalarType dtype() const { return dtype_; }

  void convert_module(torch::nn::Module& module) override;
  Scope tensor_init_context() override;
  Scope forward_context() override;
  at::Tensor convert_input(const at::Tensor& tensor) override;
  at::Tensor convert_output(const at::Tensor& tensor) override;
  bool changes_forward() const override { return true; }

 private:
  c10::ScalarType dtype_;
};

/// 64-true.
class FABRIC_API DoublePrecision : public TruePrecision {
 public:
  DoublePrecision() : TruePrecision(c10::ScalarType::Double) {}
};

/// 16-true (the default) and bf16-true.
class FABRIC_API HalfPrecision : public TruePrecision {
 public:
  /// Throws ConfigError for anything but kHalf and kBFloat16.
  explicit HalfPrecision(c10::ScalarType dtype = c10::ScalarType::Half);
};

}  // namespace fabric
