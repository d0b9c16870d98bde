#include <algorithm>
#include <cmath>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>
#include <fabric/helpers/lr/lambda_lr.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/lr/lr_values_internal.h>
#include <fabric/optim/optimizer_group.h>

namespace fabric {
namespace {

std::string loss_text(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

std::string plural(std::size_t count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace

bool FinetuningScheduler::Impl::should_transition(int at) const {
  if (depth_remaining() == 0) return false;
  const auto& now = phase(curr_depth);
  const bool at_limit = (now.max_transition_epoch >= 0 && now.max_transition_epoch <= at) ||
                        (now.max_transition_step >= 0 && now.max_transition_step <= steps);
  return at_limit || (early_stopping && early_stopping->phase_complete());
}

// One number from each rank, so that all change or none does.
bool FinetuningScheduler::Impl::agree(bool mine) const {
  if (peers.is_alone()) return mine;
  const double votes = peers.sum(mine ? 1.0 : 0.0);
  if (votes > 0 && votes < peers.size())
    messages.warn(std::to_string(static_cast<int>(votes)) + " of " + std::to_string(peers.size()) +
                  " ranks found phase " + std::to_string(curr_depth) +
                  " to be done: all go on to the next. Give EarlyStopping the same metric on every rank");
  return votes > 0;
}

void FinetuningScheduler::Impl::transition() {
  ++curr_depth;
  try {
    begin_phase();
  } catch (...) {
    --curr_depth;  // what cannot be restored is found out before anything is changed
    throw;
  }
  if (!early_stopping) return;
  early_stopping->reset_phase();
  if (depth_remaining() == 0) early_stopping->set_final_phase(true);
}

void FinetuningScheduler::Impl::begin_phase() {
  const auto depth = static_cast<std::size_t>(curr_depth);
  const bool restored = config.restore_best && restore_best();
  thaw(curr_depth);
  if (optimizer_reinits[depth]) reinit_optimizer(*optimizer_reinits[depth], lr_reinits[depth].has_value());
  if (auto factor = phase(curr_depth).scale_lr) scale_lrs(*factor);
  const int groups = add_groups(curr_depth, !lr_reinits[depth]);
  if (lr_reinits[depth]) reinit_lr(*lr_reinits[depth]);
  adapter->parameters_changed();
  announce_phase(groups, restored);
}

void FinetuningScheduler::Impl::thaw(int depth) {
  adapter->exec_phase(schedule.thawed_at(static_cast<std::size_t>(depth)));
  if (frozen_norm) frozen_norm->update();
}

double FinetuningScheduler::Impl::phase_lr(int depth) const {
  if (phase(depth).lr) return *phase(depth).lr;
  if (config.base_max_lr) return *config.base_max_lr;
  return get_lr(optimizer->param_groups().front());
}

double FinetuningScheduler::Impl::lambda_factor() const {
  const auto* functions = dynamic_cast<const FunctionLR*>(lr.get());
  if (!config.apply_lambdas_new_pgs || !functions || functions->lr_lambdas().empty()) return 1;
  return functions->lr_lambdas().back()(functions->last_epoch());
}

void FinetuningScheduler::Impl::warn_of_lambdas(double rate) const {
  const auto* functions = dynamic_cast<const FunctionLR*>(lr.get());
  if (config.apply_lambdas_new_pgs || !functions || functions->lr_lambdas().empty()) return;
  messages.warn(std::string("the new groups start at ") + loss_text(rate) + "; " + functions->name() +
                " applies its function to them from its next step on. Set apply_lambdas_new_pgs to apply it at once");
}

// Groups hold their parameters in the model's order, whatever the order in the schedule: optimizer states of the Python
// package, which go by position, then fit.
void FinetuningScheduler::Impl::append_phase(torch::optim::Optimizer& to, int depth, double rate) const {
  const auto names = depth == 0 ? adapter->phase0_params(phase(0).params) : phase(depth).params;
  const auto fresh = param_groups::not_owned(to, parameters, parameters.in_order(names));
  if (fresh.empty()) return;
  const auto parts = param_groups::split_by_decay(fresh, config.no_decay);
  for (std::size_t i = 0; i < parts.size(); ++i) param_groups::append(to, parameters.tensors(parts[i]), rate, i == 0);
}

// What a scheduler made later starts from is the rate with the lambda's factor; the present one multiplies by its
// factors itself, and gets the rate without.
int FinetuningScheduler::Impl::add_groups(int depth, bool tell_scheduler) {
  const double rate = phase_lr(depth), start = rate * lambda_factor();
  const std::size_t before = optimizer->param_groups().size();
  append_phase(*optimizer, depth, start);
  const std::size_t after = optimizer->param_groups().size();
  if (before == after) {
    messages.warn("phase " + std::to_string(depth) + ": no groups were added to the optimizer, " +
                  (phase(depth).params.empty() ? "as it names no parameters"
                                               : "as it has the parameters already, with the learning rates they had"));
    return 0;
  }
  if (tell_scheduler) warn_of_lambdas(rate);
  for (std::size_t group = before; lr.get() && tell_scheduler && group < after; ++group) lr.get()->grow(rate);
  initial_lrs->resize(before, lr::kUnset);
  initial_lrs->resize(after, start);
  return static_cast<int>(after - before);
}

void FinetuningScheduler::Impl::scale_lrs(double factor) {
  for (auto& group : optimizer->param_groups()) set_lr(group, get_lr(group) * factor);
  for (auto& rate : *initial_lrs) rate *= factor;
  if (!lr.get()) return;
  auto base = lr.get()->base_lrs();
  for (auto& rate : base) rate *= factor;
  lr.get()->set_base_lrs(std::move(base));
}

void FinetuningScheduler::Impl::reinit_lr(const LRSchedulerReinit& reinit) {
  auto& groups = optimizer->param_groups();
  auto& initial = *initial_lrs;
  initial.resize(groups.size(), lr::kUnset);
  if (!reinit.init_pg_lrs.empty()) {
    const std::size_t given = std::min(reinit.init_pg_lrs.size(), groups.size());
    for (std::size_t i = 0; i < given; ++i) set_lr(groups[i], initial[i] = reinit.init_pg_lrs[i]);
  } else if (!reinit.use_current_optimizer_pg_lrs) {
    for (std::size_t i = 0; i < groups.size(); ++i)
      if (!std::isnan(initial[i])) set_lr(groups[i], initial[i]);
  }
  const auto& init = reinit.lr_scheduler_init;
  lr.replace(make_lr_scheduler(init.class_path, init.init_args, *optimizer));
  stepping = reinit.stepping;
  lr_in_use = reinit;
}

void FinetuningScheduler::Impl::announce_phase(int groups, bool restored) const {
  const auto& now = phase(curr_depth);
  std::string text = "phase " + std::to_string(curr_depth) + " of " + std::to_string(schedule.size() - 1) +
                     " begins at epoch " + std::to_string(std::max(epoch, 0)) + ": " +
                     plural(now.params.size(), "tensor") + " thawed";
  if (!now.freeze.empty()) text += ", " + plural(now.freeze.size(), "tensor") + " frozen again";
  if (groups > 0)
    text += ", " + plural(static_cast<std::size_t>(groups), "group") + " added at lr " +
            loss_text(get_lr(optimizer->param_groups().back()));
  if (restored) text += "; restored from '" + best->path + "' (phase " + std::to_string(best->depth) + ")";
  messages.info(text);
  std::string names;
  for (const auto& name : now.params) names += (names.empty() ? "" : ", ") + name;
  messages.debug("thawed in phase " + std::to_string(curr_depth) + ": " + names);
  if (depth_remaining() > 0) return;
  std::string end = early_stopping ? "when EarlyStopping's patience is exhausted" : "when the loop does";
  if (max_epochs >= 0) end += ", at epoch " + std::to_string(max_epochs) + " at the latest";
  messages.info("phase " + std::to_string(curr_depth) + " is the last (max_depth " + std::to_string(max_depth) +
                " of " + std::to_string(schedule.size() - 1) + "): training ends " + end);
}

// --- epochs

// Whether the end of an epoch is a step of the learning-rate scheduler: one of interval "epoch", or one of interval
// "step" that waits for the metric of a validation.
bool FinetuningScheduler::Impl::is_epoch_lr_step(int at) const {
  if (stepping.interval == "epoch") return (at + 1) % stepping.frequency == 0;
  return lr.get() && lr.get()->needs_metric() && metric_step_at != steps && epoch_steps % stepping.frequency == 0;
}

void FinetuningScheduler::Impl::step_lr(const Metrics& metrics) {
  LRScheduler* scheduler = lr.get();
  if (!scheduler) return;
  if (!scheduler->needs_metric()) return scheduler->step();
  auto found = metrics.find(stepping.monitor);
  if (found != metrics.end()) return scheduler->step(found->second);
  std::vector<std::string> names;
  for (const auto& [name, value] : metrics) names.push_back(name);
  std::string what = std::string(scheduler->name()) + " needs the metric '" + stepping.monitor +
                     "', which was not given" + did_you_mean(stepping.monitor, names);
  if (stepping.strict) throw ConfigError(what);
  messages.warn(what + ". Its step is left out");
}

// A checkpoint is written before its epoch ends, so that a run that goes on with the next epoch has that step to make.
void FinetuningScheduler::Impl::finish_missed_epoch(int next) {
  const int missed = std::exchange(missed_epoch, -1);
  if (missed < 0 || next <= missed) return;
  if (!is_epoch_lr_step(missed)) return;
  Metrics metrics;
  if (missed_metric) metrics[stepping.monitor] = *missed_metric;
  if (lr.get() && lr.get()->needs_metric() && !missed_metric) {
    messages.warn("the learning-rate step of epoch " + std::to_string(missed) +
                  " is left out: the checkpoint does not know '" + stepping.monitor + "'");
    return;
  }
  step_lr(metrics);
}

void FinetuningScheduler::Impl::require_trainable(const char* call) const {
  if (generated_only)
    throw MisuseError(std::string(call) +
                      " was called although gen_ft_sched_only was set: end the program when generated_only() is true");
}

}  // namespace fabric
