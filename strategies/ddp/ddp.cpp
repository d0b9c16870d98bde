#include <fabric/strategies/ddp.h>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <unordered_set>

#include <fabric/base/nearest_name.h>

#include "plugins/collectives/waits/activity.h"
#include "strategies/ddp/collective_failure.h"
#include "strategies/ddp/ddp_averaging.h"
#include "strategies/ddp/ddp_engine.h"
#include "strategies/ddp/ddp_join.h"

namespace fabric {
namespace {

void require_one_of(const char* setting, const std::string& given, const std::vector<std::string>& valid) {
  if (std::find(valid.begin(), valid.end(), given) == valid.end())
    throw ConfigError(std::string("ddp: ") + setting + " '" + given + "' is not known" + did_you_mean(given, valid));
}

bool share_parameters(const ddp::Engine& a, const std::unordered_set<const void*>& b) {
  return std::any_of(a.params().begin(), a.params().end(),
                     [&](const at::Tensor& param) { return b.count(param.unsafeGetTensorImpl()) > 0; });
}

}  // namespace

void DDPStrategy::Config::validate() const {
  if (bucket_cap_mb.value_or(0) < 0 || first_bucket_mb < 0)
    throw ConfigError("ddp: bucket_cap_mb and first_bucket_mb must not be negative");
  if (model_averaging_period < 0 || model_averaging_warmup < 0)
    throw ConfigError("ddp: model_averaging_period and model_averaging_warmup must not be negative");
  if (model_averaging_warmup > 0 && model_averaging_period == 0)
    throw ConfigError("ddp: model_averaging_warmup needs a model_averaging_period above 0");
  require_one_of("start_method", start_method, {"auto", "popen", "copy", "spawn", "fork"});
  if (!comm_hook.name.empty()) require_one_of("comm_hook", comm_hook.name, available_comm_hooks());
  if (!comm_hook_wrapper.empty()) require_one_of("comm_hook_wrapper", comm_hook_wrapper, {"fp16", "bf16"});
}

DDPStrategy::DDPStrategy() : DDPStrategy(detail::default_of<Config>()) {}

DDPStrategy::DDPStrategy(Config config)
    : ParallelStrategy(config.process_group), config_(std::move(config)), modules_(std::make_shared<ddp::Modules>()) {
  config_.validate();
}

DDPStrategy::~DDPStrategy() = default;

std::unique_ptr<StrategyModule> DDPStrategy::setup_module(std::shared_ptr<torch::nn::Module> module,
                                                          const SetupOptions& options) {
  collectives::Task task("setup");
  const ProcessGroup& group = process_group();
  // A device without room for the model is found here, often on one rank alone.
  run_together("setup", [&] { place_module(*module, options); });
  if (group.size() > 1) {
    ddp::check_same_parameters(*module, group);
    if (config_.init_sync) ddp::broadcast_tensors(ddp::all_tensors(*module), group, 0);
  }
  if (config_.model_averaging_period > 0 && !averaging_)
    averaging_ = std::make_unique<ddp::ModelAveraging>(config_, group, modules_);
  auto engine = std::make_shared<ddp::Engine>(std::move(module), config_, group, traffic(), modules_);
  std::unordered_set<const void*> params;
  for (const auto& param : engine->params()) params.insert(param.unsafeGetTensorImpl());
  for (ddp::Engine* other : modules_->engines) {
    if (other == engine.get() || !share_parameters(*other, params)) continue;
    other->tolerate_foreign_gradients();
    engine->tolerate_foreign_gradients();
  }
  return std::make_unique<ddp::WrappedModule>(*this, std::move(engine));
}

const ProcessGroup& DDPStrategy::traffic() {
  const ProcessGroup& group = process_group();
  // One that broke on some ranks is made anew by all.
  if (group.size() == 1 || !group.all(traffic_.is_set() && traffic_.is_usable())) traffic_ = group.apart("gradients");
  return traffic_;
}

void DDPStrategy::backward(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options) {
  collectives::Task task("ddp step", ++steps_);
  for (ddp::Engine* engine : modules_->engines) engine->before_backward(loss);
  auto begin = std::chrono::steady_clock::now();
  try {
    ParallelStrategy::backward(loss, module, options);
  } catch (...) {
    fail_backward(begin);
  }
  for (ddp::Engine* engine : modules_->engines) engine->after_backward();
}

void DDPStrategy::fail_backward(std::chrono::steady_clock::time_point begin) {
  for (ddp::Engine* engine : modules_->engines) engine->backward_failed();
  try {
    ddp::throw_collective_failure(traffic_.is_set() ? traffic_ : process_group(), "all-reduce of gradients", begin);
  } catch (const MismatchError&) {
    throw;
  } catch (const CollectiveError&) {
    for (ddp::Engine* engine : modules_->engines) engine->mark_failed();
    throw;
  }
}

at::Tensor DDPStrategy::optimizer_step(torch::optim::Optimizer& optimizer, const Precision::Closure& closure) {
  if (!closure) modules_->check_gradients(optimizer);
  at::Tensor loss = ParallelStrategy::optimizer_step(optimizer, closure);
  if (closure) modules_->check_gradients(optimizer);
  for (ddp::Engine* engine : modules_->engines) engine->after_optimizer_step();
  if (averaging_) averaging_->after_step(optimizer);
  return loss;
}

void DDPStrategy::teardown() {
  averaging_.reset();
  if (traffic_.is_set() && !(traffic_ == process_group())) traffic_.shutdown();
  traffic_ = {};
  ParallelStrategy::teardown();
}

ddp::Engine& DDPStrategy::engine_of(StrategyModule& module, const char* what) const {
  for (ddp::Engine* engine : modules_->engines)
    if (&module.strategy() == this && engine->module() == module.module()) return *engine;
  throw MisuseError(std::string(what) + " got a module that ddp did not set up; pass what fabric.setup returned");
}

std::shared_ptr<CommHook> DDPStrategy::comm_hook(StrategyModule& module) {
  return engine_of(module, "comm_hook").hook();
}

void DDPStrategy::join(const std::vector<StrategyModule*>& modules, const JoinControl::Options& options,
                       const std::function<void()>& body) {
  std::vector<std::shared_ptr<ddp::Engine>> engines;
  for (StrategyModule* module : modules) engines.push_back(engine_of(*module, "join").shared_from_this());
  const ProcessGroup& group = process_group();
  if (group.size() == 1) return body();
  if (modules_->join) throw MisuseError("join was called inside join; list all models in the outer call");
  if (engines.empty()) throw MisuseError("join needs the models that are trained inside it");
  if (config_.static_graph) throw MisuseError("join does not work with static_graph; set static_graph = false");
  if (averaging_) throw MisuseError("join does not work with model averaging, whose ranks count their own steps");
  // One task for all: the ranks are at different steps of it, or at none.
  collectives::Task task("join");
  Scope restore([this] { modules_->join = nullptr; });
  ddp::JoinSession session(group, engines, options);
  modules_->join = &session;
  body();
  session.follow();
  if (session.longest() < 0) return;
  for (auto& engine : engines) ddp::broadcast_tensors(ddp::all_tensors(*engine->module()), group, session.longest());
  for (auto* optimizer : options.optimizers) {
    Value state = group.broadcast_value(optimizer_state_dict(*optimizer), session.longest());
    run_together("the end of join", [&] {
      if (group.rank() != session.longest()) load_optimizer_state_dict(*optimizer, state);
    });
  }
}

}  // namespace fabric
