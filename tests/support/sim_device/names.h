#pragma once

#include <string>

#include <torch/nn/module.h>

#include "tests/support/sim_device/memory.h"

namespace sim {

/// Findings call the parameters of this module, their gradients and its buffers by their names.
void name_tensors(const torch::nn::Module& module);
void name_tensor(const at::Tensor& tensor, const std::string& name);
/// "the gradient of 'fc.weight' (block 12)", "bytes 0 to 64 of block 12".
std::string describe(const Block& block, std::size_t begin, std::size_t end);

}  // namespace sim
