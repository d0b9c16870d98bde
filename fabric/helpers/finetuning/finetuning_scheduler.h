#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fabric/config.h>
#include <fabric/helpers/finetuning/finetuning_handles.h>
#include <fabric/helpers/finetuning/finetuning_messages.h>
#include <fabric/helpers/finetuning/finetuning_schedule.h>
#include <fabric/helpers/finetuning/reinit_config.h>
#include <fabric/helpers/peers.h>
#include <fabric/plugins/loggers/logger.h>
#include <fabric/state/state.h>

namespace fabric {

class EarlyStopping;
class ModelCheckpoint;
class StrategyAdapter;

/// Fine-tunes a model in phases: it begins with all parameters frozen but those of phase 0 and thaws more of them,
/// phase by phase, whenever the one before is done; best checkpoint restored, groups added to the optimizer, learning
/// rates kept. A phase is done when EarlyStopping's patience is, or at a limit of epochs or steps. The loop stays the
/// caller's:
///
///   FinetuningScheduler schedule({.ft_schedule = "bert.yaml"}, model, optimizer, lr_scheduler);
///   schedule.attach(stop, keep);
///   for (int epoch = 0; !schedule.done() && !stop.stopped(); ++epoch) {
///     schedule.epoch_start(epoch);
///     train(…);  auto metrics = validate(…);
///     stop.check(metrics);  keep.update(metrics, state);
///     schedule.epoch_end(metrics);
///   }
///
/// Save it with the rest: {"schedule", schedule}. Every rank calls everything; the ranks decide together.
class FABRIC_API FinetuningScheduler : public Stateful {
 public:
  struct Config {
    /// A YAML or JSON file, a map in memory (FinetuningSchedule::to_tree), or null: a schedule is made of the model.
    Tree ft_schedule = {};
    /// The last phase to train; -1: all.
    int max_depth = -1;
    /// Learning rate of phases that name none. Null: what the first group has at that time.
    std::optional<double> base_max_lr = 1e-5;
    /// Each phase begins with the weights, buffers and moments of the best checkpoint so far.
    bool restore_best = true;
    /// Writes the schedule made of the model and nothing else; see generated_only().
    bool gen_ft_sched_only = false;
    /// Phases end at their max_transition_epoch alone; no EarlyStopping.
    bool epoch_transitions_only = false;
    /// A new optimizer, or a new learning-rate scheduler (without ft_schedule only), at each phase from 1 on.
    Tree reinit_optim_cfg = {};
    Tree reinit_lr_cfg = {};
    /// Settings of the strategy adapter, and adapters of one's own by strategy
    /// (fabric/helpers/finetuning/strategy_adapter.h).
    Tree strategy_adapter_cfg = {};
    std::map<std::string, std::string> custom_strategy_adapters = {};
    /// Strategies and learning-rate schedulers that are not known to work are a warning, no error.
    bool allow_untested = false;
    /// New groups start at lr * lambda(epoch) where the scheduler has lambdas, instead of at lr.
    bool apply_lambdas_new_pgs = false;
    /// What is said, from this level on: "debug", "info", "warn" or "off".
    std::string logging_level = "info";
    /// An optimizer that does not hold exactly phase 0 is brought to it; off: it is left alone, with a warning.
    bool enforce_phase0_params = true;
    /// Batch-norm layers go on updating their running statistics while they are frozen.
    bool frozen_bn_track_running_stats = true;
    /// Where schedules are written; empty: the current folder.
    std::string log_dir = {};
    /// Epochs of the whole run, for done(); -1: as many as it takes.
    int max_epochs = -1;
    /// Parameters whose names contain one of these get groups of their own without weight decay.
    std::vector<std::string> no_decay = {};
    /// When the learning-rate scheduler that was passed in is stepped.
    LRStepping lr_stepping = {};
    /// The entries of a checkpoint that hold model and optimizer.
    std::string model_key = "model";
    std::string optimizer_key = "optimizer";
    FABRIC_FIELDS(Config, ft_schedule, max_depth, base_max_lr, restore_best, gen_ft_sched_only, epoch_transitions_only,
                  reinit_optim_cfg, reinit_lr_cfg, strategy_adapter_cfg, custom_strategy_adapters, allow_untested,
                  apply_lambdas_new_pgs, logging_level, enforce_phase0_params, frozen_bn_track_running_stats, log_dir,
                  max_epochs, no_decay, lr_stepping, model_key, optimizer_key)
    void validate() const;
  };
  /// Parts that are found by themselves where the model comes from Fabric.
  struct Parts {
    /// Who decides together.
    std::optional<Peers> peers = {};
    /// Reads a checkpoint; empty: Fabric's reader, or files of fabric::CheckpointIO.
    std::function<Value(const std::string& path)> load = {};
    FinetuningMessages::Sink messages = {};
  };

  /// Freezes the model, reads or makes the schedule, thaws phase 0 and brings the optimizer to it. Throws ConfigError
  /// for a schedule or settings that cannot be; the text says how to mend them.
  FinetuningScheduler(Config config, ModelHandle model, OptimizerHandle optimizer, LRSchedulerHandle lr_scheduler = {});
  FinetuningScheduler(Config config, ModelHandle model, OptimizerHandle optimizer, LRSchedulerHandle lr_scheduler,
                      Parts parts);
  /// Schedules know one optimizer: any other number throws ConfigError.
  FinetuningScheduler(Config config, ModelHandle model, std::vector<OptimizerHandle> optimizers,
                      LRSchedulerHandle lr_scheduler = {});
  ~FinetuningScheduler() override;
  FinetuningScheduler(const FinetuningScheduler&) = delete;
  FinetuningScheduler& operator=(const FinetuningScheduler&) = delete;

  // --- before the loop
  /// Whose patience ends phases, and whose best checkpoint phases begin with. Borrowed.
  void attach(EarlyStopping& early_stopping);
  void attach(ModelCheckpoint& checkpoint);
  void attach(EarlyStopping& early_stopping, ModelCheckpoint& checkpoint);
  /// True with gen_ft_sched_only: the schedule is at schedule_file(), the model is untouched; end with exit code 0.
  bool generated_only() const;
  /// Where the schedule in use was written.
  const std::string& schedule_file() const;

  // --- in the loop
  /// Begins an epoch (counted from 0); the place where the phase changes, by at most one. True when it did.
  bool epoch_start(int epoch);
  /// Ends an epoch: the learning-rate scheduler's step.
  void epoch_end(const Metrics& metrics = {});
  /// Before a training step: changes the phase when it reached its max_transition_step. True when it did. Costs nothing
  /// where no phase has such a limit; without this call such limits count at the next epoch.
  bool step_start();
  /// After each optimizer step: counts it, and steps a learning-rate scheduler of interval "step".
  void step_end(const Metrics& metrics = {});
  /// No epoch is left to run: max_epochs (or the last phase's limit) is reached, EarlyStopping has stopped, or nothing
  /// was to be trained.
  bool done() const;

  // --- what there is
  const Config& config() const;
  /// Expanded: entries are the names of parameters.
  const FinetuningSchedule& schedule() const;
  int curr_depth() const;
  int max_depth() const;
  int depth_remaining() const;
  /// Epochs the run may have; -1: no limit. Raised by the limit of the last phase.
  int max_epochs() const;
  /// The last epoch begun, and optimizer steps so far.
  int ft_epoch() const;
  std::int64_t ft_global_steps() const;
  /// The phase that the best checkpoint was written in, and the phase of the last one written.
  int best_ckpt_depth() const;
  int current_ckpt_depth() const;
  /// How often a best checkpoint was restored.
  int restore_count() const;
  /// Names of the parameters that are thawed now.
  std::vector<std::string> thawed_params() const;
  torch::optim::Optimizer& optimizer() const;
  /// The learning-rate scheduler in use; null without one.
  LRScheduler* lr_scheduler() const;
  StrategyAdapter& strategy_adapter() const;
  /// The phases as a table: tensors, elements, limits, learning rates, which are done.
  std::string table() const;
  void print(std::ostream& out) const;

  // --- single moves, for loops of another kind
  /// Whether `epoch` begins with a change of phase. Not collective: this rank's opinion.
  bool should_transition(int epoch) const;
  /// Goes to the next phase now. Throws MisuseError when there is none.
  void schedule_transition();
  /// Does what the beginning of phase curr_depth() does: restores the best checkpoint, thaws, adds groups.
  void step();
  /// Adds the groups of a phase; returns how many (0: all its parameters are in groups already).
  int step_pg(int depth);
  /// Freezes everything.
  void freeze_before_training();
  /// Thaws what is thawed in that phase, and freezes everything else; groups stay.
  void thaw_to_depth(int depth);
  /// False when there is none yet.
  bool restore_best_ckpt();

  // --- resuming: everything but moments and weights, which the optimizer's and the model's entries hold
  Value state_dict() const override;
  /// Brings freezing, groups, optimizer class and scheduler to where they were. Throws CheckpointKeyError, with nothing
  /// changed, for another model's state and for one of a schedule whose phases so far were others; a change of later
  /// phases is a warning.
  void load_state_dict(const Value& state) override;
  bool restores_first() const override { return true; }

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fabric
