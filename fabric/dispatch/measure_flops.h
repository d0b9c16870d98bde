#pragma once

#include <cstdint>
#include <functional>

#include <ATen/core/Tensor.h>

#include <fabric/export.h>

namespace fabric {

/// Floating point operations of what `run` does on this thread, its backward passes on the devices' threads included:
/// matrix products, convolutions and attention, a multiplication and an addition as two, as PyTorch's FlopCounterMode
/// counts. Other operators cost little beside them and count nothing. Threads that `run` starts itself count where they
/// take over its at::ThreadLocalState. Within another measurement, what is measured here counts only here.
FABRIC_API std::int64_t measure_flops(const std::function<void()>& run);
/// Of one training step: `loss` of what `forward` returns, and its backward pass. Gradients are added to the
/// parameters.
FABRIC_API std::int64_t measure_flops(const std::function<at::Tensor()>& forward,
                                      const std::function<at::Tensor(const at::Tensor&)>& loss);

}  // namespace fabric
