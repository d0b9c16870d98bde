#pragma once

#include <ATen/core/Tensor.h>

namespace torch::optim {
class Optimizer;
}

namespace fabric {

/// What the optimizer's own `save` writes, as one tensor of bytes; undefined when it writes nothing.
at::Tensor optimizer_archive(const torch::optim::Optimizer& optimizer);
/// Throws CheckpointKeyError when the optimizer's `load` refuses the bytes.
void load_optimizer_archive(torch::optim::Optimizer& optimizer, const at::Tensor& archive);

}  // namespace fabric
