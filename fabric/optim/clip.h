#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/export.h>

namespace fabric::optim {

/// Norm of the parameters' gradients taken as one vector: norm_type 1, 2, any other positive number, or infinity. A
/// scalar on the device of the first gradient, float at least; 0 without gradients. Throws MisuseError for another
/// norm_type.
FABRIC_API at::Tensor total_grad_norm(const std::vector<at::Tensor>& parameters, double norm_type = 2.0);

/// Multiplies the gradients by max_norm / (total_norm + 1e-6) where that is below 1, without waiting for the device.
FABRIC_API void scale_grads_to_norm(const std::vector<at::Tensor>& parameters, const at::Tensor& total_norm,
                                    double max_norm);

/// Scales the gradients so that their norm is at most `max_norm`; returns the norm from before. With
/// `error_if_nonfinite` (which waits for the device) a norm that is infinite or NaN is a MisuseError, and the gradients
/// stay as they are; without, they become NaN or 0. Throws MisuseError for a negative max_norm.
FABRIC_API at::Tensor clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type = 2.0,
                                     bool error_if_nonfinite = false);

/// Limits every number of every gradient to [-clip_value, clip_value]. Throws MisuseError when that is negative.
FABRIC_API void clip_grad_value(const std::vector<at::Tensor>& parameters, double clip_value);

}  // namespace fabric::optim
