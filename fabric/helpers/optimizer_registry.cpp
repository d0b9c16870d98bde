#include <fabric/helpers/optimizer_registry.h>

#include <cxxabi.h>

#include <cstdlib>
#include <optional>
#include <typeinfo>

#include <fabric/config.h>
#include <fabric/optim/fused.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>

#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

using Groups = std::vector<torch::optim::OptimizerParamGroup>;
using OptimizerPtr = std::shared_ptr<torch::optim::Optimizer>;

void require_at_least_0(const char* what, double value) {
  if (!(value >= 0)) throw ConfigError(std::string(what) + " must be 0 or more, given " + std::to_string(value));
}

struct SgdConfig {
  double lr = 1e-3, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false, fused = false;
  FABRIC_FIELDS(SgdConfig, lr, momentum, dampening, weight_decay, nesterov, fused)
  void validate() const {
    require_at_least_0("lr", lr);
    require_at_least_0("momentum", momentum);
    require_at_least_0("weight_decay", weight_decay);
    if (nesterov && (momentum <= 0 || dampening != 0))
      throw ConfigError("nesterov needs a momentum above 0 and a dampening of 0");
  }
  auto options() const {
    return torch::optim::SGDOptions(lr)
        .momentum(momentum)
        .dampening(dampening)
        .weight_decay(weight_decay)
        .nesterov(nesterov);
  }
};

template <class Options>
struct AdamConfig {
  double lr = 1e-3;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = Options().weight_decay();
  bool amsgrad = false, fused = false;
  FABRIC_FIELDS(AdamConfig, lr, betas, eps, weight_decay, amsgrad, fused)
  void validate() const {
    require_at_least_0("lr", lr);
    require_at_least_0("eps", eps);
    require_at_least_0("weight_decay", weight_decay);
    if (betas.size() != 2) throw ConfigError("betas must be two numbers, given " + std::to_string(betas.size()));
    for (double beta : betas)
      if (!(beta >= 0 && beta < 1))
        throw ConfigError("betas must be 0 or more and below 1, given " + std::to_string(beta));
  }
  auto options() const {
    return Options(lr).betas({betas[0], betas[1]}).eps(eps).weight_decay(weight_decay).amsgrad(amsgrad);
  }
};

struct RmsPropConfig {
  double lr = 1e-2, alpha = 0.99, eps = 1e-8, weight_decay = 0, momentum = 0;
  bool centered = false;
  FABRIC_FIELDS(RmsPropConfig, lr, alpha, eps, weight_decay, momentum, centered)
  void validate() const {
    require_at_least_0("lr", lr);
    require_at_least_0("alpha", alpha);
    require_at_least_0("eps", eps);
    require_at_least_0("weight_decay", weight_decay);
    require_at_least_0("momentum", momentum);
  }
  auto options() const {
    return torch::optim::RMSpropOptions(lr)
        .alpha(alpha)
        .eps(eps)
        .weight_decay(weight_decay)
        .momentum(momentum)
        .centered(centered);
  }
};

struct AdagradConfig {
  double lr = 1e-2, lr_decay = 0, weight_decay = 0, initial_accumulator_value = 0, eps = 1e-10;
  FABRIC_FIELDS(AdagradConfig, lr, lr_decay, weight_decay, initial_accumulator_value, eps)
  void validate() const {
    require_at_least_0("lr", lr);
    require_at_least_0("lr_decay", lr_decay);
    require_at_least_0("weight_decay", weight_decay);
    require_at_least_0("initial_accumulator_value", initial_accumulator_value);
    require_at_least_0("eps", eps);
  }
  auto options() const {
    return torch::optim::AdagradOptions(lr)
        .lr_decay(lr_decay)
        .weight_decay(weight_decay)
        .initial_accumulator_value(initial_accumulator_value)
        .eps(eps);
  }
};

struct LbfgsConfig {
  double lr = 1;
  std::int64_t max_iter = 20;
  std::optional<std::int64_t> max_eval = {};
  double tolerance_grad = 1e-7, tolerance_change = 1e-9;
  std::int64_t history_size = 100;
  std::optional<std::string> line_search_fn = {};
  FABRIC_FIELDS(LbfgsConfig, lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn)
  void validate() const {
    require_at_least_0("lr", lr);
    if (line_search_fn && *line_search_fn != "strong_wolfe")
      throw ConfigError("line_search_fn must be null or 'strong_wolfe', given '" + *line_search_fn + "'");
  }
  auto options() const {
    return torch::optim::LBFGSOptions(lr)
        .max_iter(max_iter)
        .max_eval(max_eval)
        .tolerance_grad(tolerance_grad)
        .tolerance_change(tolerance_change)
        .history_size(history_size)
        .line_search_fn(line_search_fn);
  }
};

// LibTorch takes an option of a group that equals the default of the options' class for one that was not set. So the
// groups' own options are put in place after the optimizer is made.
template <class Optimizer, class Options>
OptimizerPtr made(Groups groups, const Options& options) {
  Groups plain;
  for (const auto& group : groups) plain.emplace_back(group.params());
  auto optimizer = std::make_shared<Optimizer>(std::move(plain), options);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (!groups[g].has_options()) continue;
    if (!dynamic_cast<Options*>(&groups[g].options()))
      throw ConfigError("group " + std::to_string(g) + " has options of another optimizer");
    optimizer->param_groups()[g].set_options(groups[g].options().clone());
  }
  return optimizer;
}

template <class Plain, class Config>
OptimizerPtr make_plain(const Tree& init_args, Groups groups) {
  return made<Plain>(std::move(groups), from_tree<Config>(init_args).options());
}

template <class Plain, class Fused, class Config>
OptimizerPtr make_either(const Tree& init_args, Groups groups) {
  auto config = from_tree<Config>(init_args);
  return config.fused ? made<Fused>(std::move(groups), config.options())
                      : made<Plain>(std::move(groups), config.options());
}

using AdamSettings = AdamConfig<torch::optim::AdamOptions>;
using AdamWSettings = AdamConfig<torch::optim::AdamWOptions>;

Registry<MakeOptimizer>& optimizers() {
  static Registry<MakeOptimizer> all("optimizer",
                                     {{"SGD", make_either<torch::optim::SGD, optim::SGD, SgdConfig>},
                                      {"Adam", make_either<torch::optim::Adam, optim::Adam, AdamSettings>},
                                      {"AdamW", make_either<torch::optim::AdamW, optim::AdamW, AdamWSettings>},
                                      {"RMSprop", make_plain<torch::optim::RMSprop, RmsPropConfig>},
                                      {"Adagrad", make_plain<torch::optim::Adagrad, AdagradConfig>},
                                      {"LBFGS", make_plain<torch::optim::LBFGS, LbfgsConfig>},
                                      {"FusedSGD", make_plain<optim::SGD, SgdConfig>},
                                      {"FusedAdam", make_plain<optim::Adam, AdamSettings>},
                                      {"FusedAdamW", make_plain<optim::AdamW, AdamWSettings>}},
                                     class_names({"torch.optim.", "fabric.optim.", "optim.", "fabric."}));
  return all;
}

}  // namespace

std::shared_ptr<torch::optim::Optimizer> make_optimizer(const std::string& class_path, const Tree& init_args,
                                                        std::vector<torch::optim::OptimizerParamGroup> groups) {
  auto [name, make, description] = optimizers().get(class_path);
  if (groups.empty()) throw ConfigError(name + ": there is no group of parameters to optimize");
  try {
    return make(init_args, std::move(groups));
  } catch (const ConfigError& error) {
    throw ConfigError(name + ": " + error.what());
  } catch (const c10::Error& error) {
    throw ConfigError(name + ": " + error.what_without_backtrace());
  }
}

void register_optimizer(const std::string& name, MakeOptimizer make, bool override_existing) {
  optimizers().add(name, std::move(make), override_existing);
}

std::vector<std::string> available_optimizers() { return optimizers().names(); }

std::string optimizer_name(const std::string& class_path) { return optimizers().get(class_path).name; }

std::string optimizer_class(const torch::optim::Optimizer& optimizer) {
  const std::type_info& type = typeid(optimizer);
  if (type == typeid(torch::optim::SGD)) return "SGD";
  if (type == typeid(torch::optim::Adam)) return "Adam";
  if (type == typeid(torch::optim::AdamW)) return "AdamW";
  if (type == typeid(torch::optim::RMSprop)) return "RMSprop";
  if (type == typeid(torch::optim::Adagrad)) return "Adagrad";
  if (type == typeid(torch::optim::LBFGS)) return "LBFGS";
  if (type == typeid(optim::SGD)) return "FusedSGD";
  if (type == typeid(optim::Adam)) return "FusedAdam";
  if (type == typeid(optim::AdamW)) return "FusedAdamW";
  std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr), std::free);
  return name ? name.get() : type.name();
}

}  // namespace fabric
