#pragma once
// Private to FinetuningScheduler: what its sources share.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <fabric/helpers/early_stopping.h>
#include <fabric/helpers/finetuning/finetuning_scheduler.h>
#include <fabric/helpers/finetuning/frozen_parameters.h>
#include <fabric/helpers/finetuning/model_parameters.h>
#include <fabric/helpers/finetuning/param_groups_internal.h>
#include <fabric/helpers/finetuning/schedule_reader.h>
#include <fabric/helpers/finetuning/strategy_adapter.h>

namespace fabric {

/// All there is to know about the best checkpoint, in one record, so that path, phase and groups never part.
struct BestCheckpoint {
  std::string path;
  int depth = 0;
  std::string optimizer_class;
  std::vector<std::vector<std::string>> groups;  // names, in the order of the optimizer's state
  Value to_value() const;
  static BestCheckpoint from_value(const Value& value);
};

struct FinetuningScheduler::Impl {
  Impl(Config given, ModelHandle model, OptimizerHandle optimizer, LRSchedulerHandle lr, Parts parts);

  // --- setup (finetuning_setup.cpp)
  void set_up();
  void resolve_adapter();
  void load_schedule();
  void make_schedule();
  void dump(const Tree& tree, bool required);
  void read_reinits();
  void limit_depth();
  void enforce_phase0();
  void start();
  void require_ways_out() const;
  void require_checkpoint() const;

  // --- transitions (finetuning_transition.cpp)
  bool should_transition(int epoch) const;
  bool agree(bool mine) const;
  void transition();
  void begin_phase();
  void thaw(int depth);
  int add_groups(int depth, bool tell_scheduler);
  double phase_lr(int depth) const;
  double lambda_factor() const;
  void warn_of_lambdas(double lr) const;
  void scale_lrs(double factor);
  void append_phase(torch::optim::Optimizer& to, int depth, double lr) const;
  void reinit_lr(const LRSchedulerReinit& reinit);

  // --- a new optimizer (finetuning_reinit.cpp)
  void reinit_optimizer(const OptimizerReinit& reinit, bool lr_follows);
  std::vector<double> fill_groups(torch::optim::Optimizer& fresh) const;
  std::vector<std::optional<std::size_t>> old_groups_of(const torch::optim::Optimizer& fresh) const;
  void announce_phase(int groups, bool restored) const;

  // --- the best checkpoint (finetuning_restore.cpp)
  bool restore_best();
  Value read_best() const;
  /// As the strategy knows parts of larger tensors.
  StateAccess state_access() const;
  const Value& model_entry(const Value& file) const;
  std::optional<Value> moments(const Value& file) const;
  void note_save(const CheckpointEvent& event);
  void forget_save(const CheckpointEvent& event);

  // --- resuming (finetuning_state.cpp)
  Value state() const;
  void load(const Value& state);
  std::shared_ptr<torch::optim::Optimizer> optimizer_for(const Value& state) const;
  void check_lr(const Value& state) const;
  void load_optimizer(const Value& state, const std::vector<param_groups::GroupRecord>& groups);
  void load_lr(const Value& state);
  void compare_schedules(const FinetuningSchedule& saved, int depth) const;

  // --- epochs
  bool is_epoch_lr_step(int epoch) const;
  void step_lr(const Metrics& metrics);
  void finish_missed_epoch(int epoch);
  void require_trainable(const char* call) const;

  int depth_remaining() const { return std::max(max_depth - curr_depth, 0); }
  const FinetuningPhase& phase(int depth) const { return schedule.phases[static_cast<std::size_t>(depth)]; }
  bool reinitialises() const;

  Config config;
  ModelHandle model;
  OptimizerHandle optimizer;
  LRSchedulerHandle lr;
  Peers peers;
  std::function<Value(const std::string&)> load_file;
  FinetuningMessages messages;
  ModelParameters parameters;
  std::shared_ptr<StrategyAdapter> adapter;
  std::unique_ptr<FrozenBatchNorm> frozen_norm;

  ScheduleSource source;
  FinetuningSchedule schedule;
  std::string schedule_file;
  std::vector<std::optional<OptimizerReinit>> optimizer_reinits;  // by phase
  std::vector<std::optional<LRSchedulerReinit>> lr_reinits;

  EarlyStopping* early_stopping = nullptr;
  ModelCheckpoint* checkpoint = nullptr;
  std::shared_ptr<CheckpointObserver> observer;

  int max_depth = 0;
  int curr_depth = 0;
  int max_epochs = -1;
  int epoch = -1;
  std::int64_t steps = 0;
  std::int64_t epoch_steps = 0;  // since the epoch began
  std::int64_t metric_step_at =
      -1;  // the optimizer step after which a scheduler of interval "step" last got its metric
  bool epoch_open = false;
  bool started = false;
  bool resumed = false;
  bool generated_only = false;
  int missed_epoch = -1;  // a resumed run's epoch that was not ended yet when it was saved
  std::optional<double> missed_metric;
  std::optional<double> saved_metric;

  LRStepping stepping;
  std::optional<OptimizerReinit> optimizer_in_use;  // empty: the caller's own
  std::optional<LRSchedulerReinit> lr_in_use;
  std::shared_ptr<std::vector<double>> initial_lrs;
  std::vector<std::shared_ptr<torch::optim::Optimizer>> retired;  // others may still refer to them

  std::optional<BestCheckpoint> best, best_before;
  int current_ckpt_depth = 0;
  int restores = 0;
};

}  // namespace fabric
