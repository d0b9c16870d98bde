#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <torch/optim/optimizer.h>

#include <fabric/export.h>

// What schedulers read and write in an optimizer's groups, whatever class the optimizer has.
namespace fabric {

/// The group's learning rate. Throws MisuseError for options of an own class without `get_lr` and `set_lr`.
FABRIC_API double get_lr(const torch::optim::OptimizerParamGroup& group);
FABRIC_API void set_lr(torch::optim::OptimizerParamGroup& group, double lr);
/// The group's momentum (SGD, RMSprop) or first beta (Adam, AdamW, and the fused ones); nothing for other optimizers.
FABRIC_API std::optional<double> get_momentum(const torch::optim::OptimizerParamGroup& group);
/// Throws MisuseError where get_momentum finds nothing.
FABRIC_API void set_momentum(torch::optim::OptimizerParamGroup& group, double momentum);

/// The learning rate that each group of this optimizer began with: in Python the group's entry `initial_lr`, for which
/// LibTorch's groups have no room. All schedulers of one optimizer share the list, which lives as long as one of them
/// (or whoever else asked for it) does. Entries that are NaN or missing are not set: a new scheduler fills them in with
/// the present learning rates (ReduceLROnPlateau, which starts from none, leaves them). The optimizer must outlive
/// whoever holds the list.
FABRIC_API std::shared_ptr<std::vector<double>> shared_initial_lrs(const torch::optim::Optimizer& optimizer);

}  // namespace fabric
