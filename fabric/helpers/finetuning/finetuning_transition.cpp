#include <algorithm>
#include <sstream>
#include <unordered_map>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>
#include <fabric/helpers/lr/lambda_lr.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
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

double FinetuningScheduler::Impl::starting_lr(double rate) const {
  const auto* functions = dynamic_cast<const FunctionLR*>(lr.get());
  if (!functions || functions->lr_lambdas().empty()) return rate;
  if (config.apply_lambdas_new_pgs) return rate * functions->lr_lambdas().back()(functions->last_epoch());
  messages.warn(std::string("the new groups start at ") + loss_text(rate) + "; " + functions->name() +
                " applies its function to them from its next step on. Set apply_lambdas_new_pgs to apply it at once");
  return rate;
}

int FinetuningScheduler::Impl::add_groups(int depth, bool tell_scheduler) {
  const auto& names = phase(depth).params;
  auto fresh = param_groups::not_owned(*optimizer, parameters, names);
  if (fresh.empty()) {
    messages.warn("phase " + std::to_string(depth) + ": no groups were added to the optimizer, " +
                  (names.empty() ? "as it names no parameters"
                                 : "as it has the parameters already, with the learning rates they had"));
    return 0;
  }
  const double rate = phase_lr(depth);
  const double start = tell_scheduler ? starting_lr(rate) : rate;
  auto parts = param_groups::split_by_decay(fresh, config.no_decay);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    param_groups::append(*optimizer, parameters.tensors(parts[i]), start, i == 0);
    const std::size_t group = optimizer->param_groups().size() - 1;
    if (lr.get() && tell_scheduler) lr.get()->grow(rate);
    initial_lrs->resize(group + 1, rate);
    (*initial_lrs)[group] = rate;
  }
  return static_cast<int>(parts.size());
}

void FinetuningScheduler::Impl::scale_lrs(double factor) {
  for (auto& group : optimizer->param_groups()) set_lr(group, get_lr(group) * factor);
  for (auto& rate : *initial_lrs) rate *= factor;
  if (!lr.get()) return;
  auto base = lr.get()->base_lrs();
  for (auto& rate : base) rate *= factor;
  lr.get()->set_base_lrs(std::move(base));
}

// --- a new optimizer: phases up to the one before are rebuilt in it, the new one is added as always

void FinetuningScheduler::Impl::reinit_optimizer(const OptimizerReinit& reinit, bool lr_follows) {
  auto parts = param_groups::split_by_decay(adapter->phase0_params(schedule.phases[0].params), config.no_decay);
  const auto& init = reinit.optimizer_init;
  auto fresh = param_groups::make_empty(init.class_path, init.init_args, parameters.tensors(phase(0).params));
  auto initial = shared_initial_lrs(*fresh);
  const double rate = get_lr(torch::optim::OptimizerParamGroup({}, fresh->defaults().clone()));
  initial->clear();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    param_groups::append(*fresh, parameters.tensors(parts[i]), rate, i == 0);
    initial->push_back(rate);
  }
  for (int depth = 1; depth < curr_depth; ++depth) append_phase(*fresh, depth, phase_lr(depth), *initial);
  if (!lr_follows) keep_lrs(*fresh, *initial);
  const std::vector<double> kept = *initial;
  retired.push_back(optimizer.replace(std::move(fresh)));
  if (LRScheduler* scheduler = lr.get(); scheduler && !lr_follows) {
    scheduler->rebind(*optimizer);
    scheduler->shrink(kept.size());
    for (std::size_t i = scheduler->base_lrs().size(); i < kept.size(); ++i) scheduler->grow(kept[i]);
  }
  initial_lrs = shared_initial_lrs(*optimizer);
  *initial_lrs = kept;
  optimizer_in_use = reinit;
}

void FinetuningScheduler::Impl::append_phase(torch::optim::Optimizer& to, int depth, double rate,
                                             std::vector<double>& initial) {
  auto fresh = param_groups::not_owned(to, parameters, phase(depth).params);
  if (fresh.empty()) return;
  auto parts = param_groups::split_by_decay(fresh, config.no_decay);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    param_groups::append(to, parameters.tensors(parts[i]), rate, i == 0);
    initial.push_back(rate);
  }
}

// The learning rates go on where the old optimizer's were, by parameter: its groups may have been others.
void FinetuningScheduler::Impl::keep_lrs(torch::optim::Optimizer& fresh, std::vector<double>& initial) const {
  std::unordered_map<std::string, std::pair<double, double>> known;
  for (const auto& group : param_groups::records(*optimizer, parameters, *initial_lrs))
    for (const auto& name : group.params) known[name] = {group.lr, group.initial_lr};
  auto& groups = fresh.param_groups();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].params().empty()) continue;
    auto found = known.find(*parameters.name_of(groups[i].params().front()));
    if (found == known.end()) continue;
    set_lr(groups[i], found->second.first);
    initial[i] = found->second.second;
  }
}

void FinetuningScheduler::Impl::reinit_lr(const LRSchedulerReinit& reinit) {
  auto& groups = optimizer->param_groups();
  initial_lrs->resize(groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (i < reinit.init_pg_lrs.size()) {
      (*initial_lrs)[i] = reinit.init_pg_lrs[i];
      set_lr(groups[i], reinit.init_pg_lrs[i]);
    } else if (!reinit.use_current_optimizer_pg_lrs) {
      set_lr(groups[i], (*initial_lrs)[i]);
    }
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
  if (stepping.interval != "epoch" || (missed + 1) % stepping.frequency != 0) return;
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
