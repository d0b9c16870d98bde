#include <algorithm>

#include <fabric/base/error.h>
#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/optim/optimizer_group.h>

namespace fabric {
namespace {

constexpr int kVersion = 1;

Value optional_value(const std::optional<Tree>& tree) { return tree ? to_value(*tree) : Value(); }

[[noreturn]] void unfit(const std::string& what) {
  throw CheckpointKeyError("the fine-tuning scheduler cannot go on from this state: " + what);
}

FinetuningSchedule schedule_from(const Value& saved) {
  FinetuningSchedule schedule;
  for (const auto& [key, tree] : saved.as_map()) {
    auto& phase = schedule.phases.emplace_back();
    for (const auto& name : tree.at("params").as_list()) phase.params.push_back(name.as_string());
    if (const Value* names = tree.find("freeze"))
      for (const auto& name : names->as_list()) phase.freeze.push_back(name.as_string());
    if (const Value* limit = tree.find("max_transition_epoch"))
      phase.max_transition_epoch = static_cast<int>(limit->as_int());
    if (const Value* limit = tree.find("max_transition_step")) phase.max_transition_step = limit->as_int();
    if (const Value* rate = tree.find("lr")) phase.lr = rate->as_double();
    if (const Value* factor = tree.find("scale_lr")) phase.scale_lr = factor->as_double();
    if (const Value* init = tree.find("new_optimizer")) phase.new_optimizer = to_tree(*init);
    if (const Value* init = tree.find("new_lr_scheduler")) phase.new_lr_scheduler = to_tree(*init);
  }
  return schedule;
}

std::string first_difference(const std::vector<std::string>& saved, const std::vector<std::string>& now) {
  for (const auto& name : saved)
    if (std::find(now.begin(), now.end(), name) == now.end()) return "'" + name + "' is no longer in it";
  for (const auto& name : now)
    if (std::find(saved.begin(), saved.end(), name) == saved.end()) return "'" + name + "' is new in it";
  return "the order of its parameters is another";
}

}  // namespace

Value FinetuningScheduler::Impl::state() const {
  Value::List groups;
  for (const auto& record : param_groups::records(*optimizer, parameters, *initial_lrs))
    groups.push_back(record.to_value());
  std::optional<Tree> optimizer_init, lr_init;
  if (optimizer_in_use) optimizer_init = optimizer_in_use->optimizer_init.to_tree();
  if (lr_in_use) lr_init = lr_in_use->to_tree();
  Value out = Value::Map{};
  out["version"] = kVersion;
  out["curr_depth"] = curr_depth;
  out["current_ckpt_depth"] = current_ckpt_depth;
  out["best"] = best ? best->to_value() : Value();
  out["epoch"] = epoch;
  out["epoch_open"] = epoch_open || missed_epoch >= 0;
  out["open_metric"] = saved_metric ? Value(*saved_metric) : Value();
  out["steps"] = steps;
  out["epoch_steps"] = epoch_steps;
  out["restores"] = restores;
  out["schedule"] = to_value(schedule.to_tree());
  out["groups"] = std::move(groups);
  out["optimizer_class"] = optimizer_class(*optimizer);
  out["optimizer_init"] = optional_value(optimizer_init);
  out["lr_scheduler_init"] = optional_value(lr_init);
  out["lr_scheduler"] = lr.get() ? lr.get()->state_dict() : Value();
  return out;
}

void FinetuningScheduler::Impl::compare_schedules(const FinetuningSchedule& saved, int depth) const {
  if (depth >= static_cast<int>(schedule.size()))
    unfit("it was saved in phase " + std::to_string(depth) + ", and the schedule has phases 0 to " +
          std::to_string(schedule.size() - 1) + " only. Start with the schedule of that run");
  for (int d = 0; d <= depth; ++d) {
    const auto& old = saved.phases[static_cast<std::size_t>(d)];
    if (old.params != phase(d).params)
      unfit("phase " + std::to_string(d) + " of the schedule has been trained and is another now: " +
            first_difference(old.params, phase(d).params) + ". Only later phases may change");
    if (old.freeze != phase(d).freeze)
      unfit("phase " + std::to_string(d) + " of the schedule has been trained and freezes others now: " +
            first_difference(old.freeze, phase(d).freeze) + ". Only later phases may change");
  }
  if (saved != schedule)
    messages.warn(
        "the schedule is not the one that the run was saved with; the phases trained so far are the same, "
        "and the rest goes by the new one");
}

void FinetuningScheduler::Impl::load(const Value& state) {
  if (generated_only) unfit("gen_ft_sched_only is set");
  std::vector<param_groups::GroupRecord> groups;
  std::optional<BestCheckpoint> record;
  int depth = 0;
  try {
    depth = static_cast<int>(state.at("curr_depth").as_int());
    for (const auto& group : state.at("groups").as_list())
      groups.push_back(param_groups::GroupRecord::from_value(group));
    if (!state.at("best").is_null()) record = BestCheckpoint::from_value(state.at("best"));
    auto saved = schedule_from(state.at("schedule"));
    if (depth < 0 || depth >= static_cast<int>(saved.size()))
      unfit("it is damaged (phase " + std::to_string(depth) + ")");
    compare_schedules(saved, depth);
    for (const auto& group : groups)
      for (const auto& name : group.params) parameters.tensor(name);
    for (const char* key : {"epoch", "steps", "restores", "current_ckpt_depth"}) state.at(key).as_int();
    state.at("epoch_open").as_bool();
    load_optimizer(state, groups);
  } catch (const CheckpointKeyError&) {
    throw;
  } catch (const Error& error) {
    unfit(error.what());
  }
  curr_depth = depth;
  best = std::move(record);
  best_before.reset();
  current_ckpt_depth = static_cast<int>(state.at("current_ckpt_depth").as_int());
  epoch = static_cast<int>(state.at("epoch").as_int());
  missed_epoch = state.at("epoch_open").as_bool() ? epoch : -1;
  epoch_open = false;
  missed_metric.reset();
  if (const Value* metric = state.find("open_metric"); metric && metric->is_number())
    missed_metric = metric->as_double();
  steps = state.at("steps").as_int();
  const Value* of_epoch = state.find("epoch_steps");
  epoch_steps = of_epoch ? of_epoch->as_int() : 0;
  metric_step_at = -1;
  restores = static_cast<int>(state.at("restores").as_int());
  resumed = true;
  thaw(curr_depth);
  adapter->parameters_changed();
  if (early_stopping) early_stopping->set_final_phase(depth_remaining() == 0);
  messages.info("resumed in phase " + std::to_string(curr_depth) + " of " + std::to_string(schedule.size() - 1) +
                ", after epoch " + std::to_string(epoch));
}

// The optimizer that the state was saved with, when it is not the present one: made anew where a phase had made it, and
// always then, since a new one of the same class has other settings for the groups to come; otherwise the caller's own.
std::shared_ptr<torch::optim::Optimizer> FinetuningScheduler::Impl::optimizer_for(const Value& state) const {
  const std::string saved = state.at("optimizer_class").as_string(), present = optimizer_class(*optimizer);
  const Value& init = state.at("optimizer_init");
  if (!init.is_null()) {
    if (!optimizer.is_replaceable())
      unfit("it was saved with a new " + saved +
            ", and this optimizer cannot be replaced. Pass what fabric.setup returned, "
            "or a variable of type std::shared_ptr<torch::optim::Optimizer>");
    return param_groups::make_empty(init.at("class_path").as_string(), to_tree(init.at("init_args")),
                                    parameters.tensors(parameters.in_order(phase(0).params)));
  }
  const bool is_callers = !optimizer_in_use.has_value();
  const std::string own = is_callers ? present : optimizer_class(*retired.front());
  if (saved != own)
    unfit("it was saved with " + saved + ", the optimizer is " + own + ". Make the same optimizer as then");
  return is_callers ? nullptr : retired.front();
}

// Builds what the state names once over a dummy, as the real one changes learning rates.
void FinetuningScheduler::Impl::check_lr(const Value& state) const {
  const Value& init = state.at("lr_scheduler_init");
  const Value& saved = state.at("lr_scheduler");
  if (!init.is_null()) {
    read_lr_scheduler_reinit(to_tree(init), {"the saved learning-rate scheduler", true, true},
                             FinetuningMessages(log::Level::off, false));
    return;
  }
  if (saved.is_null() != (lr.get() == nullptr))
    unfit(saved.is_null() ? "it was saved without a learning-rate scheduler, and there is one now"
                          : "it was saved with a learning-rate scheduler, and there is none now");
  if (lr.get() && saved.at("class").as_string() != lr.get()->name())
    unfit("it was saved with " + saved.at("class").as_string() + ", the learning-rate scheduler is " +
          lr.get()->name());
}

// The last thing that can fail comes before the first change: classes are compared, then made.
void FinetuningScheduler::Impl::load_optimizer(const Value& state,
                                               const std::vector<param_groups::GroupRecord>& groups) {
  auto other = optimizer_for(state);
  check_lr(state);
  if (other) retired.push_back(optimizer.replace(std::move(other)));
  const Value& init = state.at("optimizer_init");
  optimizer_in_use.reset();
  if (!init.is_null())
    optimizer_in_use = OptimizerReinit{ClassInit{init.at("class_path").as_string(), to_tree(init.at("init_args"))}};
  param_groups::rebuild(*optimizer, groups, parameters);
  initial_lrs = shared_initial_lrs(*optimizer);
  load_lr(state);
  initial_lrs->clear();
  for (const auto& group : groups) initial_lrs->push_back(group.initial_lr);
  for (std::size_t i = 0; i < groups.size(); ++i) set_lr(optimizer->param_groups()[i], groups[i].lr);
}

void FinetuningScheduler::Impl::load_lr(const Value& state) {
  const Value& init = state.at("lr_scheduler_init");
  stepping = config.lr_stepping;
  lr_in_use.reset();
  if (!init.is_null()) {
    lr_in_use = read_lr_scheduler_reinit(to_tree(init), {"the saved learning-rate scheduler", true, true},
                                         FinetuningMessages(log::Level::off, false));
    stepping = lr_in_use->stepping;
    const auto& made = lr_in_use->lr_scheduler_init;
    lr.replace(make_lr_scheduler(made.class_path, made.init_args, *optimizer));
  } else if (lr.get() && &lr.get()->optimizer() != &*optimizer) {
    lr.get()->rebind(*optimizer);
  }
  if (lr.get()) lr.get()->load_state_dict(state.at("lr_scheduler"));
}

}  // namespace fabric
