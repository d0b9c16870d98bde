#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/base/tree.h>
#include <fabric/helpers/lr/lr_scheduler.h>

namespace fabric {

/// A scheduler by the name of its class, as Python writes it: "StepLR", "lr_scheduler.StepLR" or
/// "torch.optim.lr_scheduler.StepLR". `init_args` are the settings by PyTorch's names; those of SequentialLR and
/// ChainedScheduler hold `schedulers`, a list of {class_path, init_args}. Throws ConfigError for an unknown name or
/// setting, naming the nearest valid one, and for LambdaLR and MultiplicativeLR, whose functions no file can hold:
/// register a name of your own for them.
FABRIC_API std::unique_ptr<LRScheduler> make_lr_scheduler(const std::string& class_path, const Tree& init_args,
                                                          torch::optim::Optimizer& optimizer);

using MakeLRScheduler =
    std::function<std::unique_ptr<LRScheduler>(torch::optim::Optimizer& optimizer, const Tree& init_args)>;
/// Adds a scheduler; throws ConfigError for a name that is taken unless `override_existing`.
FABRIC_API void register_lr_scheduler(const std::string& name, MakeLRScheduler make, bool override_existing = false);
FABRIC_API std::vector<std::string> available_lr_schedulers();
/// The registered name that a class path means; throws ConfigError for an unknown one.
FABRIC_API std::string lr_scheduler_name(const std::string& class_path);

}  // namespace fabric
