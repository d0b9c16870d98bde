#pragma once

#include <functional>
#include <vector>

#include <fabric/helpers/lr/lr_scheduler.h>

namespace fabric {

/// A factor by the number of the epoch.
using LRFunction = std::function<double(std::int64_t epoch)>;

/// What LambdaLR and MultiplicativeLR share: one function for all groups, or one for each. Functions cannot be saved:
/// the state says so, and a load keeps those that the constructor got.
class FABRIC_API FunctionLR : public LRScheduler {
 public:
  const std::vector<LRFunction>& lr_lambdas() const { return lr_lambdas_; }
  /// New groups get a copy of the last function.
  void grow(double initial_lr) override;
  void shrink(std::size_t groups) override;

 protected:
  /// Throws ConfigError for an empty function, and for as many functions as there are no groups.
  FunctionLR(const char* name, torch::optim::Optimizer& optimizer, LRFunction lr_lambda);
  FunctionLR(const char* name, torch::optim::Optimizer& optimizer, std::vector<LRFunction> lr_lambdas);
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;
  std::vector<LRFunction> lr_lambdas_;
};

/// lr = base_lr * f(epoch).
class FABRIC_API LambdaLR : public FunctionLR {
 public:
  LambdaLR(torch::optim::Optimizer& optimizer, LRFunction lr_lambda, std::int64_t last_epoch = -1)
      : FunctionLR("LambdaLR", optimizer, std::move(lr_lambda)) {
    start(last_epoch);
  }
  LambdaLR(torch::optim::Optimizer& optimizer, std::vector<LRFunction> lr_lambdas, std::int64_t last_epoch = -1)
      : FunctionLR("LambdaLR", optimizer, std::move(lr_lambdas)) {
    start(last_epoch);
  }
  const char* name() const override { return "LambdaLR"; }

 protected:
  double next_lr(std::size_t group, double) override { return base_lrs_[group] * lr_lambdas_[group](last_epoch_); }
};

/// lr = lr * f(epoch), from epoch 1 on.
class FABRIC_API MultiplicativeLR : public FunctionLR {
 public:
  MultiplicativeLR(torch::optim::Optimizer& optimizer, LRFunction lr_lambda, std::int64_t last_epoch = -1)
      : FunctionLR("MultiplicativeLR", optimizer, std::move(lr_lambda)) {
    start(last_epoch);
  }
  MultiplicativeLR(torch::optim::Optimizer& optimizer, std::vector<LRFunction> lr_lambdas, std::int64_t last_epoch = -1)
      : FunctionLR("MultiplicativeLR", optimizer, std::move(lr_lambdas)) {
    start(last_epoch);
  }
  const char* name() const override { return "MultiplicativeLR"; }

 protected:
  double next_lr(std::size_t group, double lr) override {
    return is_initial() ? lr : lr * lr_lambdas_[group](last_epoch_);
  }
};

}  // namespace fabric
