#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <fabric/helpers/lr/lr_scheduler.h>

namespace fabric {

/// Schedulers of one optimizer that work together; what SequentialLR and ChainedScheduler share.
class FABRIC_API CompositeLR : public LRScheduler {
 public:
  using Schedulers = std::vector<std::shared_ptr<LRScheduler>>;
  const Schedulers& schedulers() const { return schedulers_; }

  void set_base_lrs(std::vector<double> lrs) override;
  void grow(double initial_lr) override;
  void shrink(std::size_t groups) override;
  void rebind(torch::optim::Optimizer& optimizer) override;

 protected:
  /// Throws ConfigError for no scheduler, and for one of another optimizer or one that needs a metric.
  CompositeLR(const char* name, torch::optim::Optimizer& optimizer, Schedulers schedulers);
  double next_lr(std::size_t, double lr) override { return lr; }
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;
  Schedulers schedulers_;
};

/// One scheduler after another: the i-th begins, from its own epoch 0, when `milestones[i - 1]` steps were made. All
/// are made over the optimizer first, in any order; making this one puts the learning rates back to their initial
/// values and does the first step of the first scheduler.
class FABRIC_API SequentialLR : public CompositeLR {
 public:
  /// `milestones` rise and are one fewer than the schedulers, else ConfigError. A ChainedScheduler can only be the
  /// first of them, since it has no way to begin anew.
  SequentialLR(torch::optim::Optimizer& optimizer, Schedulers schedulers, std::vector<std::int64_t> milestones);
  const char* name() const override { return "SequentialLR"; }

 protected:
  void advance(std::optional<double> metric) override;
  void jump(std::int64_t epoch) override;
  void initial_step() override;
  void undo_initial_step() override;
  void start_over() override;
  void save_fields(Value& state) const override;
  void load_fields(const Value& state) override;

 private:
  std::size_t scheduler_at(std::int64_t epoch) const;
  void arrange();
  std::vector<std::int64_t> milestones_;
};

/// All schedulers at each step, one after the other, each on what the one before it left.
class FABRIC_API ChainedScheduler : public CompositeLR {
 public:
  explicit ChainedScheduler(Schedulers schedulers);
  const char* name() const override { return "ChainedScheduler"; }

 protected:
  void advance(std::optional<double> metric) override;
  void initial_step() override;
  void undo_initial_step() override;
  void start_over() override;
};

}  // namespace fabric
