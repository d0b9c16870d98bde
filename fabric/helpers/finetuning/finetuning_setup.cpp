#include <algorithm>
#include <unordered_set>

#include <fabric/base/error.h>
#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>
#include <fabric/helpers/finetuning/schedule_validation_internal.h>
#include <fabric/helpers/lr/lr_scheduler_support_internal.h>
#include <fabric/optim/optimizer_group.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/strategies/single_device.h>

namespace fabric {
namespace {

log::Level level_named(const std::string& name) {
  if (name == "debug") return log::Level::debug;
  if (name == "warn") return log::Level::warn;
  if (name == "error") return log::Level::error;
  return name == "off" ? log::Level::off : log::Level::info;
}

const std::shared_ptr<Strategy>& strategy_of(const ModelHandle& model, const OptimizerHandle& optimizer) {
  if (model.strategy() || !optimizer.strategy()) return model.strategy();
  return *optimizer.strategy();
}

Peers peers_of(const FinetuningScheduler::Parts& parts, const std::shared_ptr<Strategy>& strategy) {
  if (parts.peers) return *parts.peers;
  return strategy ? Peers(strategy->process_group()) : Peers();
}

std::function<Value(const std::string&)> loader_of(std::function<Value(const std::string&)> given,
                                                   const std::shared_ptr<Strategy>& strategy) {
  if (given) return given;
  if (strategy) return [strategy](const std::string& path) { return strategy->open_checkpoint(path); };
  return [](const std::string& path) { return make_checkpoint_io()->load(path); };
}

double default_lr(const torch::optim::Optimizer& optimizer) {
  return get_lr(torch::optim::OptimizerParamGroup({}, optimizer.defaults().clone()));
}

std::string listed_names(const std::vector<std::string>& names) {
  std::string out;
  for (std::size_t i = 0; i < names.size() && i < 10; ++i) out += (i == 0 ? "" : ", ") + names[i];
  return names.empty() ? "nothing" : out + (names.size() > 10 ? ", … (" + std::to_string(names.size()) + ")" : "");
}

}  // namespace

FinetuningScheduler::Impl::Impl(Config given, ModelHandle model_handle, OptimizerHandle optimizer_handle,
                                LRSchedulerHandle lr_handle, Parts parts)
    : config((given.validate(), std::move(given))),
      model(std::move(model_handle)),
      optimizer(std::move(optimizer_handle)),
      lr(std::move(lr_handle)),
      peers(peers_of(parts, strategy_of(model, optimizer))),
      load_file(loader_of(parts.load, strategy_of(model, optimizer))),
      messages(level_named(config.logging_level), peers.rank() == 0),
      parameters(*model),
      stepping(config.lr_stepping) {
  messages.set_sink(parts.messages);
  if (parameters.names().empty())
    throw ConfigError("the model has no parameters, so that there is nothing to fine-tune");
}

void FinetuningScheduler::Impl::set_up() {
  resolve_adapter();
  adapter->before_init();
  source.name = "ft_schedule";
  if (config.gen_ft_sched_only) {
    make_schedule();
    generated_only = true;
    messages.info("the schedule made of the model is in '" + schedule_file +
                  "'; nothing is trained (gen_ft_sched_only)");
    return;
  }
  if (config.ft_schedule.is_null())
    make_schedule();
  else
    load_schedule();
  limit_depth();
  expand_schedule(schedule, adapter->parameters_for_schedule(), source, messages);
  read_reinits();
  check_transitions(schedule, static_cast<std::size_t>(max_depth), config.epoch_transitions_only, source, messages);
  adapter->validate_schedule(schedule);
  if (lr.get()) require_supported(*lr.get(), config.allow_untested, "the learning-rate scheduler", messages);
  param_groups::records(*optimizer, parameters, {});  // throws for tensors of another model
  initial_lrs = shared_initial_lrs(*optimizer);
  if (!config.frozen_bn_track_running_stats) frozen_norm = std::make_unique<FrozenBatchNorm>(model.module());
  thaw(0);
  enforce_phase0();
  adapter->parameters_changed();
}

void FinetuningScheduler::Impl::resolve_adapter() {
  const auto& strategy = strategy_of(model, optimizer);
  const SingleDeviceStrategy without_fabric;
  const Strategy& used = strategy ? *strategy : static_cast<const Strategy&>(without_fabric);
  AdapterRequest request{used.name(), used.finetuning_adapter(), config.custom_strategy_adapters,
                         config.strategy_adapter_cfg.is_null() ? Tree(Tree::Map{}) : config.strategy_adapter_cfg,
                         config.allow_untested};
  adapter = resolve_strategy_adapter(request, messages);
  adapter->connect({model.module(), model.strategy_module(), strategy, &parameters, messages});
}

void FinetuningScheduler::Impl::load_schedule() {
  const auto folder = std::filesystem::path(config.log_dir);
  source = load_schedule_source(config.ft_schedule, peers);
  source.mended = folder / (class_name(*model) + "_ft_schedule_valid.yaml");
  dump(source.tree, /*required=*/false);
  schedule = read_schedule(source, messages);
}

void FinetuningScheduler::Impl::make_schedule() {
  schedule = adapter->generate_schedule();
  dump(schedule.to_tree(), /*required=*/config.gen_ft_sched_only);
}

// Rank 0 alone writes. A schedule that cannot be kept for reading is no reason to end a run.
void FinetuningScheduler::Impl::dump(const Tree& tree, bool required) {
  auto path = std::filesystem::path(config.log_dir) / (class_name(*model) + "_ft_schedule.yaml");
  std::string failure;
  if (peers.rank() == 0) {
    try {
      write_schedule(tree, path);
    } catch (const Error& error) {
      failure = error.what();
    }
  }
  failure = peers.broadcast(Value(failure)).as_string();
  if (failure.empty()) {
    schedule_file = path.string();
  } else if (required) {
    throw CheckpointError(failure + ". Set log_dir to a folder that can be written");
  } else {
    messages.warn(failure);
  }
}

void FinetuningScheduler::Impl::read_reinits() {
  optimizer_reinits.assign(schedule.size(), std::nullopt);
  lr_reinits.assign(schedule.size(), std::nullopt);
  std::optional<OptimizerReinit> all_optimizers;
  std::optional<LRSchedulerReinit> all_lrs;
  if (!config.reinit_optim_cfg.is_null())
    all_optimizers = read_optimizer_reinit(config.reinit_optim_cfg, {"reinit_optim_cfg", false, config.allow_untested});
  if (!config.reinit_lr_cfg.is_null())
    all_lrs = read_lr_scheduler_reinit(config.reinit_lr_cfg, {"reinit_lr_cfg", false, config.allow_untested}, messages);
  for (std::size_t depth = 1; depth < schedule.size(); ++depth) {
    const auto& phase = schedule.phases[depth];
    auto place = [&](const char* key) {
      return ReinitPlace{source.at(std::to_string(depth) + "." + key) + "phase " + std::to_string(depth) + ": " + key,
                         true, config.allow_untested};
    };
    optimizer_reinits[depth] = all_optimizers;
    lr_reinits[depth] = all_lrs;
    if (!phase.new_optimizer.is_null())
      optimizer_reinits[depth] = read_optimizer_reinit(phase.new_optimizer, place("new_optimizer"));
    if (!phase.new_lr_scheduler.is_null())
      lr_reinits[depth] = read_lr_scheduler_reinit(phase.new_lr_scheduler, place("new_lr_scheduler"), messages);
  }
  const bool any =
      std::any_of(optimizer_reinits.begin(), optimizer_reinits.end(), [](auto& r) { return r.has_value(); });
  if (any && !optimizer.is_replaceable())
    throw ConfigError(
        "the schedule makes a new optimizer, but this one was passed as an object that cannot become another class. "
        "Pass what fabric.setup returned, or a variable of type std::shared_ptr<torch::optim::Optimizer>");
}

void FinetuningScheduler::Impl::limit_depth() {
  const int last = static_cast<int>(schedule.size()) - 1;
  max_depth = config.max_depth < 0 ? last : std::min(config.max_depth, last);
  max_epochs = config.max_epochs;
  if (phase(max_depth).max_transition_epoch < 0) return;
  int latest = max_depth == 0 ? phase(0).max_transition_epoch : -1;
  for (int depth = 1; depth <= max_depth; ++depth) latest = std::max(latest, phase(depth).max_transition_epoch);
  max_epochs = std::max(max_epochs, latest);
}

void FinetuningScheduler::Impl::enforce_phase0() {
  const auto wanted = adapter->phase0_params(schedule.phases[0].params);
  std::unordered_set<std::string> expected(wanted.begin(), wanted.end());
  std::vector<std::string> held, foreign;
  for (const auto& group : param_groups::records(*optimizer, parameters, {}))
    for (const auto& name : group.params) {
      held.push_back(name);
      if (!expected.contains(name)) foreign.push_back(name);
    }
  auto missing = param_groups::not_owned(*optimizer, parameters, wanted);
  if (foreign.empty() && missing.empty()) return;
  if (!config.enforce_phase0_params) {
    messages.warn(
        "the optimizer does not hold exactly phase 0 and is left as it is (enforce_phase0_params is off). It "
        "holds " +
        listed_names(held) + "; phase 0 is " + listed_names(wanted) + ". " + std::to_string(foreign.size()) +
        " of its parameters are frozen now");
    return;
  }
  const double rate = default_lr(*optimizer);
  optimizer->param_groups().clear();
  for (const auto& name : foreign) optimizer->state().erase(parameters.tensor(name).unsafeGetTensorImpl());
  append_phase(*optimizer, 0, rate);
  initial_lrs->assign(optimizer->param_groups().size(), rate);
  if (lr.get()) lr.get()->restart();
  messages.info("the optimizer held " + std::to_string(held.size()) + " parameters, phase 0 has " +
                std::to_string(wanted.size()) +
                ": its groups were made anew for phase 0, with its default learning rate");
}

// --- before the first epoch

void FinetuningScheduler::Impl::start() {
  require_ways_out();
  require_checkpoint();
  if (lr.get() && lr.get()->needs_metric() && stepping.monitor.empty())
    throw ConfigError(std::string(lr.get()->name()) +
                      " needs a metric: set for instance .lr_stepping = {.monitor = \"val_loss\"}");
  // Again, as its own state may have been loaded after this one's, from a run whose last phase was another.
  if (early_stopping) early_stopping->set_final_phase(depth_remaining() == 0);
  started = true;
}

void FinetuningScheduler::Impl::require_ways_out() const {
  if (early_stopping) return;
  std::string stuck;
  for (int depth = curr_depth; depth < max_depth; ++depth)
    if (phase(depth).max_transition_epoch < 0 && phase(depth).max_transition_step < 0)
      stuck += (stuck.empty() ? "" : ", ") + std::to_string(depth);
  if (!stuck.empty())
    throw ConfigError("nothing ends phase " + stuck +
                      ": attach an EarlyStopping, or give the phases a max_transition_epoch");
}

void FinetuningScheduler::Impl::require_checkpoint() const {
  if (!config.restore_best || max_depth == 0) return;
  if (!checkpoint)
    throw ConfigError(
        "restore_best needs to know the best checkpoint: attach a ModelCheckpoint with a monitor, or set restore_best "
        "= "
        "false");
  if (checkpoint->config().save_weights_only && !reinitialises())
    throw ConfigError(
        "restore_best needs the optimizer's moments, which a ModelCheckpoint with save_weights_only leaves out. Save "
        "the optimizer, too, or set restore_best = false");
}

bool FinetuningScheduler::Impl::reinitialises() const {
  auto given = [](const auto& reinit) { return reinit.has_value(); };
  return std::any_of(optimizer_reinits.begin(), optimizer_reinits.end(), given) ||
         std::any_of(lr_reinits.begin(), lr_reinits.end(), given);
}

}  // namespace fabric
