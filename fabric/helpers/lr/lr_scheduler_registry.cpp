#include <fabric/helpers/lr/lr_scheduler_registry.h>

#include <fabric/helpers/lr/lr_schedulers.h>

#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

template <class Scheduler>
std::unique_ptr<LRScheduler> configured(torch::optim::Optimizer& optimizer, const Tree& init_args) {
  return std::make_unique<Scheduler>(optimizer, from_tree<typename Scheduler::Config>(init_args));
}

template <class Scheduler>
std::unique_ptr<LRScheduler> refuse_functions(torch::optim::Optimizer&, const Tree&) {
  throw ConfigError("it needs a function, which settings cannot hold. Make it in C++, or give it a name of your own " +
                    std::string("with register_lr_scheduler(\"my_decay\", …) and use that as class_path"));
}

struct CompositeConfig {
  std::vector<Tree> schedulers = {};
  std::vector<std::int64_t> milestones = {};
  FABRIC_FIELDS(CompositeConfig, schedulers, milestones)
};

CompositeLR::Schedulers inner_schedulers(torch::optim::Optimizer& optimizer, const CompositeConfig& config) {
  CompositeLR::Schedulers schedulers;
  for (const Tree& each : config.schedulers) {
    const Tree* class_path = each.find("class_path");
    if (!class_path || !class_path->is_string())
      throw ConfigError("schedulers." + std::to_string(schedulers.size()) +
                        ": write {class_path: NAME, init_args: {…}} for each scheduler");
    const Tree* init_args = each.find("init_args");
    schedulers.push_back(make_lr_scheduler(class_path->as_string(), init_args ? *init_args : Tree(), optimizer));
  }
  return schedulers;
}

std::unique_ptr<LRScheduler> sequential(torch::optim::Optimizer& optimizer, const Tree& init_args) {
  auto config = from_tree<CompositeConfig>(init_args);
  return std::make_unique<SequentialLR>(optimizer, inner_schedulers(optimizer, config), config.milestones);
}

std::unique_ptr<LRScheduler> chained(torch::optim::Optimizer& optimizer, const Tree& init_args) {
  auto config = from_tree<CompositeConfig>(init_args);
  if (!config.milestones.empty()) throw ConfigError("milestones: a ChainedScheduler has none; use SequentialLR");
  return std::make_unique<ChainedScheduler>(inner_schedulers(optimizer, config));
}

Registry<MakeLRScheduler>& schedulers() {
  static Registry<MakeLRScheduler> all("LR scheduler",
                                       {{"LambdaLR", refuse_functions<LambdaLR>},
                                        {"MultiplicativeLR", refuse_functions<MultiplicativeLR>},
                                        {"StepLR", configured<StepLR>},
                                        {"MultiStepLR", configured<MultiStepLR>},
                                        {"ConstantLR", configured<ConstantLR>},
                                        {"LinearLR", configured<LinearLR>},
                                        {"ExponentialLR", configured<ExponentialLR>},
                                        {"CosineAnnealingLR", configured<CosineAnnealingLR>},
                                        {"CosineAnnealingWarmRestarts", configured<CosineAnnealingWarmRestarts>},
                                        {"ReduceLROnPlateau", configured<ReduceLROnPlateau>},
                                        {"PolynomialLR", configured<PolynomialLR>},
                                        {"OneCycleLR", configured<OneCycleLR>},
                                        {"CyclicLR", configured<CyclicLR>},
                                        {"SequentialLR", sequential},
                                        {"ChainedScheduler", chained}},
                                       class_names({"torch.optim.lr_scheduler.", "lr_scheduler.", "fabric."}));
  return all;
}

}  // namespace

std::unique_ptr<LRScheduler> make_lr_scheduler(const std::string& class_path, const Tree& init_args,
                                               torch::optim::Optimizer& optimizer) {
  auto [name, make, description] = schedulers().get(class_path);
  try {
    return make(optimizer, init_args);
  } catch (const ConfigError& error) {
    const std::string what = error.what();
    throw ConfigError(what.starts_with(name + ": ") ? what : name + ": " + what);
  }
}

void register_lr_scheduler(const std::string& name, MakeLRScheduler make, bool override_existing) {
  schedulers().add(name, std::move(make), override_existing);
}

std::vector<std::string> available_lr_schedulers() { return schedulers().names(); }

std::string lr_scheduler_name(const std::string& class_path) { return schedulers().get(class_path).name; }

}  // namespace fabric
