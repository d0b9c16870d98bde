#pragma once

#include <memory>

#include <c10/core/Device.h>
#include <torch/nn/module.h>

namespace fabric {

/// A copy of the module on `device` whose gradients flow to the module's own parameters. Throws MisuseError for a
/// module that cannot be cloned.
std::shared_ptr<torch::nn::Module> replicate(const std::shared_ptr<torch::nn::Module>& module, c10::Device device);

}  // namespace fabric
