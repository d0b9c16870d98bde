#include <fabric/helpers/lr/lambda_lr.h>

#include <algorithm>

namespace fabric {
namespace {

std::vector<LRFunction> checked(const char* name, std::vector<LRFunction> functions, std::size_t groups) {
  if (functions.size() != groups)
    throw ConfigError(std::string(name) + ": expected " + std::to_string(groups) + " lr_lambdas, one for each group, " +
                      "but got " + std::to_string(functions.size()));
  for (const auto& function : functions)
    if (!function) throw ConfigError(std::string(name) + ": an lr_lambda is an empty function");
  return functions;
}

}  // namespace

FunctionLR::FunctionLR(const char* name, torch::optim::Optimizer& optimizer, LRFunction lr_lambda)
    : FunctionLR(name, optimizer, std::vector<LRFunction>(optimizer.param_groups().size(), std::move(lr_lambda))) {}

FunctionLR::FunctionLR(const char* name, torch::optim::Optimizer& optimizer, std::vector<LRFunction> lr_lambdas)
    : LRScheduler(optimizer), lr_lambdas_(checked(name, std::move(lr_lambdas), optimizer.param_groups().size())) {}

void FunctionLR::grow(double initial_lr) {
  LRScheduler::grow(initial_lr);
  lr_lambdas_.resize(base_lrs_.size(), LRFunction(lr_lambdas_.back()));
}

void FunctionLR::shrink(std::size_t groups) {
  LRScheduler::shrink(groups);
  // One stays, so that groups which come later have a function to copy.
  if (lr_lambdas_.size() > groups) lr_lambdas_.resize(std::max<std::size_t>(groups, 1));
}

void FunctionLR::save_fields(Value& state) const {
  state["lr_lambdas"] = "not saved: functions must be given to the constructor again";
}

void FunctionLR::load_fields(const Value& state) {
  lr_lambdas_.resize(std::max<std::size_t>(state.at("base_lrs").as_list().size(), 1), LRFunction(lr_lambdas_.back()));
}

}  // namespace fabric
