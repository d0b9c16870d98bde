#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torch/optim/optimizer.h>

#include <fabric/base/tree.h>

namespace fabric {

/// An optimizer by the name of its class: "SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "LBFGS", or "FusedSGD",
/// "FusedAdam" and "FusedAdamW" of fabric/optim/fused.h; with or without "torch.optim.". `init_args` are its settings
/// by PyTorch's names and defaults; `fused: true` of SGD, Adam and AdamW is another way of writing FusedSGD and so on.
/// Options that a group of `groups` has stay as they are. Throws ConfigError for an unknown name or setting, naming the
/// nearest valid one, for values that cannot be, and for no groups.
FABRIC_API std::shared_ptr<torch::optim::Optimizer> make_optimizer(
    const std::string& class_path, const Tree& init_args, std::vector<torch::optim::OptimizerParamGroup> groups);

using MakeOptimizer = std::function<std::shared_ptr<torch::optim::Optimizer>(
    const Tree& init_args, std::vector<torch::optim::OptimizerParamGroup> groups)>;
/// Adds an optimizer; throws ConfigError for a name that is taken unless `override_existing`.
FABRIC_API void register_optimizer(const std::string& name, MakeOptimizer make, bool override_existing = false);
FABRIC_API std::vector<std::string> available_optimizers();
/// The registered name that a class path means; throws ConfigError for an unknown one.
FABRIC_API std::string optimizer_name(const std::string& class_path);
/// The name under which make_optimizer makes an optimizer of this class; the C++ name of a class it does not know.
FABRIC_API std::string optimizer_class(const torch::optim::Optimizer& optimizer);

}  // namespace fabric
