#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>

#include <fabric/facade/wrappers.h>
#include <fabric/helpers/lr/lr_scheduler.h>

// How a FinetuningScheduler holds what belongs to its caller: with Fabric or without, by reference or by variable.
namespace fabric {

/// A model: what `Fabric::setup` returned, a module holder, or a shared pointer to a module.
class ModelHandle {
 public:
  template <class M>
  ModelHandle(const FabricModule<M>& model)
      : module_(model.module()),
        keeps_alive_(std::make_shared<FabricModule<M>>(model)),
        strategy_module_(&model.strategy_module()),
        strategy_(model.strategy()) {}
  template <class Impl>
  ModelHandle(const torch::nn::ModuleHolder<Impl>& holder) : module_(holder.ptr()) {}
  template <std::derived_from<torch::nn::Module> M>
  ModelHandle(const std::shared_ptr<M>& module) : module_(module) {}

  torch::nn::Module& operator*() const { return *module_; }
  torch::nn::Module* operator->() const { return module_.get(); }
  const std::shared_ptr<torch::nn::Module>& module() const { return module_; }
  /// Null without Fabric.
  StrategyModule* strategy_module() const { return strategy_module_; }
  const std::shared_ptr<Strategy>& strategy() const { return strategy_; }

 private:
  std::shared_ptr<torch::nn::Module> module_;
  std::shared_ptr<void> keeps_alive_;
  StrategyModule* strategy_module_ = nullptr;
  std::shared_ptr<Strategy> strategy_;
};

/// An optimizer. With Fabric, or as a variable `std::shared_ptr<torch::optim::Optimizer>`, it can be replaced by one of
/// another class: the caller's handle or variable then holds the new one.
class OptimizerHandle {
 public:
  OptimizerHandle(const FabricOptimizer& optimizer) : fabric_(std::make_shared<FabricOptimizer>(optimizer)) {}
  OptimizerHandle(std::shared_ptr<torch::optim::Optimizer>& variable) : variable_(&variable) {}
  OptimizerHandle(torch::optim::Optimizer& optimizer) : plain_(&optimizer) {}
  template <std::derived_from<torch::optim::Optimizer> O>
  OptimizerHandle(const std::shared_ptr<O>& optimizer) : shared_(optimizer), plain_(optimizer.get()) {}

  torch::optim::Optimizer& operator*() const { return fabric_ ? **fabric_ : variable_ ? **variable_ : *plain_; }
  torch::optim::Optimizer* operator->() const { return &**this; }
  bool is_replaceable() const { return fabric_ || variable_; }
  /// The old one, which others may still refer to.
  std::shared_ptr<torch::optim::Optimizer> replace(std::shared_ptr<torch::optim::Optimizer> optimizer) {
    if (fabric_) return fabric_->replace(std::move(optimizer));
    return std::exchange(*variable_, std::move(optimizer));
  }
  const std::shared_ptr<Strategy>* strategy() const { return fabric_ ? &fabric_->strategy() : nullptr; }

 private:
  std::shared_ptr<FabricOptimizer> fabric_;
  std::shared_ptr<torch::optim::Optimizer>* variable_ = nullptr;
  std::shared_ptr<torch::optim::Optimizer> shared_;
  torch::optim::Optimizer* plain_ = nullptr;
};

/// A learning-rate scheduler, or none. A variable `std::unique_ptr<LRScheduler>` (or shared) gets the new one when a
/// phase makes one; otherwise the FinetuningScheduler keeps the new one itself.
class LRSchedulerHandle {
 public:
  LRSchedulerHandle() = default;
  LRSchedulerHandle(std::nullptr_t) {}
  LRSchedulerHandle(LRScheduler& scheduler) : plain_(&scheduler) {}
  LRSchedulerHandle(std::unique_ptr<LRScheduler>& variable) : unique_(&variable) {}
  LRSchedulerHandle(std::shared_ptr<LRScheduler>& variable) : shared_(&variable) {}
  template <std::derived_from<LRScheduler> S>
  LRSchedulerHandle(const std::unique_ptr<S>& scheduler) : plain_(scheduler.get()) {}
  template <std::derived_from<LRScheduler> S>
  LRSchedulerHandle(const std::shared_ptr<S>& scheduler) : plain_(scheduler.get()), keeps_alive_(scheduler) {}

  LRScheduler* get() const { return unique_ ? unique_->get() : shared_ ? shared_->get() : plain_; }
  void replace(std::unique_ptr<LRScheduler> scheduler) {
    if (unique_) {
      *unique_ = std::move(scheduler);
    } else if (shared_) {
      *shared_ = std::move(scheduler);
    } else {
      std::shared_ptr<LRScheduler> owned = std::move(scheduler);
      plain_ = owned.get();
      keeps_alive_ = std::move(owned);
    }
  }

 private:
  LRScheduler* plain_ = nullptr;
  std::unique_ptr<LRScheduler>* unique_ = nullptr;
  std::shared_ptr<LRScheduler>* shared_ = nullptr;
  std::shared_ptr<void> keeps_alive_;
};

}  // namespace fabric
