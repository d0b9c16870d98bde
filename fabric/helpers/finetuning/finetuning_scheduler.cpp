#include <fabric/helpers/finetuning/finetuning_scheduler.h>

#include <algorithm>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>

namespace fabric {
namespace {

OptimizerHandle the_only_one(const std::vector<OptimizerHandle>& optimizers) {
  if (optimizers.size() != 1)
    throw ConfigError("a fine-tuning scheduler works with one optimizer, given " + std::to_string(optimizers.size()) +
                      ". Put all parameters into groups of one optimizer");
  return optimizers.front();
}

}  // namespace

void FinetuningScheduler::Config::validate() const {
  if (max_depth < -1)
    throw ConfigError("max_depth is " + std::to_string(max_depth) +
                      "; give -1 for all phases, or the last one to train");
  if (max_epochs < -1) throw ConfigError("max_epochs is " + std::to_string(max_epochs) + "; give -1 for no limit");
  if (base_max_lr && !(*base_max_lr >= 0))
    throw ConfigError("base_max_lr is a number from 0 on, or null for the first group's");
  const std::vector<std::string> levels{"debug", "info", "warn", "error", "off"};
  if (std::find(levels.begin(), levels.end(), logging_level) == levels.end())
    throw ConfigError("logging_level '" + logging_level + "' is unknown" + did_you_mean(logging_level, levels));
  if (!ft_schedule.is_null() && !ft_schedule.is_string() && !ft_schedule.is_map())
    throw ConfigError(std::string("ft_schedule is the path of a file, a map or null, given ") + ft_schedule.kind());
  if (!ft_schedule.is_null() && !reinit_lr_cfg.is_null())
    throw ConfigError(
        "reinit_lr_cfg is for schedules that are made of the model. With ft_schedule write the scheduler into the "
        "phases, as new_lr_scheduler");
  lr_stepping.validate();
}

FinetuningScheduler::FinetuningScheduler(Config config, ModelHandle model, OptimizerHandle optimizer,
                                         LRSchedulerHandle lr_scheduler)
    : FinetuningScheduler(std::move(config), std::move(model), std::move(optimizer), std::move(lr_scheduler), Parts{}) {
}

FinetuningScheduler::FinetuningScheduler(Config config, ModelHandle model, OptimizerHandle optimizer,
                                         LRSchedulerHandle lr_scheduler, Parts parts)
    : impl_(std::make_shared<Impl>(std::move(config), std::move(model), std::move(optimizer), std::move(lr_scheduler),
                                   std::move(parts))) {
  impl_->set_up();
  if (!impl_->generated_only) impl_->adapter->after_init(*this);
}

FinetuningScheduler::FinetuningScheduler(Config config, ModelHandle model, std::vector<OptimizerHandle> optimizers,
                                         LRSchedulerHandle lr_scheduler)
    : FinetuningScheduler(std::move(config), std::move(model), the_only_one(optimizers), std::move(lr_scheduler)) {}

FinetuningScheduler::~FinetuningScheduler() = default;

void FinetuningScheduler::attach(EarlyStopping& early_stopping) {
  auto& it = *impl_;
  if (it.early_stopping && it.early_stopping != &early_stopping)
    throw MisuseError("a second EarlyStopping was attached; phases end by one");
  if (it.config.epoch_transitions_only) {
    it.messages.warn(
        "an EarlyStopping was attached although epoch_transitions_only is set: it is left aside, and its patience "
        "neither ends a phase nor the run");
    early_stopping.set_final_phase(false);
    return;
  }
  it.early_stopping = &early_stopping;
  early_stopping.set_final_phase(it.depth_remaining() == 0);
  if (!it.resumed) early_stopping.set_phase_complete(false);
}

namespace {

/// Shared with the ModelCheckpoint, which may outlive the scheduler.
struct Observer : CheckpointObserver {
  std::function<void(const CheckpointEvent&)> saved, failed;
  void before_save(const CheckpointEvent& event) override { saved(event); }
  void save_failed(const CheckpointEvent& event) override { failed(event); }
};

}  // namespace

void FinetuningScheduler::attach(ModelCheckpoint& checkpoint) {
  auto& it = *impl_;
  if (it.checkpoint == &checkpoint) return;
  if (it.checkpoint) throw MisuseError("a second ModelCheckpoint was attached; phases begin with the best one of one");
  if (it.config.restore_best && !it.generated_only) {
    if (!checkpoint.monitor() || checkpoint.save_top_k() == 0)
      throw ConfigError(std::string("restore_best needs a ModelCheckpoint that keeps the best: ") +
                        (checkpoint.monitor() ? "its save_top_k is 0; set it to 1 or more"
                                              : "it has no monitor; set for instance "
                                                ".monitor = \"val_loss\"") +
                        ", or set restore_best = false");
    it.adapter->validate_monitor_metric(*checkpoint.monitor());
  }
  it.checkpoint = &checkpoint;
  auto observer = std::make_shared<Observer>();
  std::weak_ptr<Impl> impl = impl_;
  observer->saved = [impl](const CheckpointEvent& event) {
    if (auto self = impl.lock()) self->note_save(event);
  };
  observer->failed = [impl](const CheckpointEvent& event) {
    if (auto self = impl.lock()) self->forget_save(event);
  };
  it.observer = observer;
  checkpoint.add_observer(it.observer);
}

void FinetuningScheduler::attach(EarlyStopping& early_stopping, ModelCheckpoint& checkpoint) {
  attach(early_stopping);
  attach(checkpoint);
}

bool FinetuningScheduler::epoch_start(int epoch) {
  auto& it = *impl_;
  it.require_trainable("epoch_start");
  if (!it.started) {
    it.start();
    it.adapter->before_fit_start(*this);
  }
  // A resumed run may go on in the middle of the epoch that it was saved in; the steps of that epoch count on.
  const bool same_epoch = it.missed_epoch == epoch;
  it.finish_missed_epoch(epoch);
  if (!same_epoch) it.epoch_steps = 0;
  it.epoch = std::max(it.epoch, epoch);
  it.epoch_open = true;
  if (!it.agree(it.should_transition(epoch))) return false;
  it.transition();
  return true;
}

void FinetuningScheduler::epoch_end(const Metrics& metrics) {
  auto& it = *impl_;
  it.require_trainable("epoch_end");
  it.epoch_open = false;
  it.missed_epoch = -1;
  if (it.is_epoch_lr_step(it.epoch)) it.step_lr(metrics);
}

bool FinetuningScheduler::step_start() {
  auto& it = *impl_;
  if (it.depth_remaining() == 0) return false;
  const auto limit = it.phase(it.curr_depth).max_transition_step;
  if (limit < 0 || limit > it.steps) return false;
  it.require_trainable("step_start");
  it.transition();
  return true;
}

void FinetuningScheduler::step_end(const Metrics& metrics) {
  auto& it = *impl_;
  ++it.steps;
  ++it.epoch_steps;
  if (it.stepping.interval != "step" || it.epoch_steps % it.stepping.frequency != 0) return;
  // A plateau moves after a validation: with the metrics given here, or at the epoch's end.
  if (it.lr.get() && it.lr.get()->needs_metric()) {
    if (!metrics.contains(it.stepping.monitor)) return;
    it.metric_step_at = it.steps;
  }
  it.step_lr(metrics);
}

bool FinetuningScheduler::done() const {
  const auto& it = *impl_;
  if (it.generated_only) return true;
  if (it.early_stopping && it.early_stopping->stopped()) return true;
  if (it.max_epochs < 0 || it.epoch + 1 < it.max_epochs) return false;
  // Without a number of epochs the limit of the last phase is the last phase's alone.
  return it.config.max_epochs >= 0 || it.depth_remaining() == 0;
}

// --- what there is

bool FinetuningScheduler::generated_only() const { return impl_->generated_only; }
const std::string& FinetuningScheduler::schedule_file() const { return impl_->schedule_file; }
const FinetuningScheduler::Config& FinetuningScheduler::config() const { return impl_->config; }
const FinetuningSchedule& FinetuningScheduler::schedule() const { return impl_->schedule; }
int FinetuningScheduler::curr_depth() const { return impl_->curr_depth; }
int FinetuningScheduler::max_depth() const { return impl_->max_depth; }
int FinetuningScheduler::depth_remaining() const { return impl_->depth_remaining(); }
int FinetuningScheduler::max_epochs() const { return impl_->max_epochs; }
int FinetuningScheduler::ft_epoch() const { return impl_->epoch; }
std::int64_t FinetuningScheduler::ft_global_steps() const { return impl_->steps; }
int FinetuningScheduler::best_ckpt_depth() const { return impl_->best ? impl_->best->depth : 0; }
int FinetuningScheduler::current_ckpt_depth() const { return impl_->current_ckpt_depth; }
int FinetuningScheduler::restore_count() const { return impl_->restores; }
torch::optim::Optimizer& FinetuningScheduler::optimizer() const { return *impl_->optimizer; }
LRScheduler* FinetuningScheduler::lr_scheduler() const { return impl_->lr.get(); }
StrategyAdapter& FinetuningScheduler::strategy_adapter() const { return *impl_->adapter; }

std::vector<std::string> FinetuningScheduler::thawed_params() const {
  std::vector<std::string> names;
  for (const auto& name : impl_->parameters.names())
    if (impl_->parameters.tensor(name).requires_grad()) names.push_back(name);
  return names;
}

// --- single moves

bool FinetuningScheduler::should_transition(int epoch) const { return impl_->should_transition(epoch); }

void FinetuningScheduler::schedule_transition() {
  impl_->require_trainable("schedule_transition");
  if (impl_->depth_remaining() == 0)
    throw MisuseError("there is no phase after " + std::to_string(impl_->curr_depth) +
                      "; ask depth_remaining() before");
  impl_->transition();
}

void FinetuningScheduler::step() {
  impl_->require_trainable("step");
  impl_->begin_phase();
}

namespace {

void require_depth(int depth, std::size_t phases) {
  if (depth < 0 || depth >= static_cast<int>(phases))
    throw MisuseError("there is no phase " + std::to_string(depth) + "; the schedule has phases 0 to " +
                      std::to_string(phases - 1));
}

}  // namespace

int FinetuningScheduler::step_pg(int depth) {
  require_depth(depth, impl_->schedule.size());
  return impl_->add_groups(depth, true);
}

void FinetuningScheduler::freeze_before_training() {
  impl_->adapter->exec_phase({});
  if (impl_->frozen_norm) impl_->frozen_norm->update();
}

void FinetuningScheduler::thaw_to_depth(int depth) {
  require_depth(depth, impl_->schedule.size());
  impl_->thaw(depth);
  impl_->adapter->parameters_changed();
}

bool FinetuningScheduler::restore_best_ckpt() { return impl_->restore_best(); }

Value FinetuningScheduler::state_dict() const { return impl_->state(); }
void FinetuningScheduler::load_state_dict(const Value& state) { impl_->load(state); }

}  // namespace fabric
