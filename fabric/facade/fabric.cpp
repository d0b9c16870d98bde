#include <fabric/fabric.h>

#include <exception>
#include <iostream>
#include <limits>

#include <fabric/base/log.h>
#include <fabric/launcher/error_file.h>

#include "fabric/base/value_codec_internal.h"
#include "fabric/facade/connector_internal.h"
#include "fabric/facade/silent_logger_internal.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric {

struct Fabric::Core {
  std::shared_ptr<Strategy> strategy;
  std::shared_ptr<std::vector<std::shared_ptr<Callback>>> callbacks;
  std::vector<std::shared_ptr<Logger>> loggers;
  std::vector<std::string> decisions;
  bool launched = false;
  bool shut_down = false;
  int exceptions_at_start = std::uncaught_exceptions();
  int models_setup = 0;
  std::shared_ptr<std::atomic<int>> backward_depth = std::make_shared<std::atomic<int>>(0);
  std::vector<std::weak_ptr<detail::ModuleCore>> modules;
};

Fabric::Fabric() : Fabric(Config{}, Parts{}) {}
Fabric::Fabric(const Config& config) : Fabric(config, Parts{}) {}

Fabric::Fabric(const Config& config, Parts parts) : core_(std::make_unique<Core>()) {
  install_error_file();
  Resolved resolved = resolve(config, std::move(parts));
  core_->strategy = std::move(resolved.strategy);
  core_->callbacks = std::make_shared<std::vector<std::shared_ptr<Callback>>>(std::move(resolved.callbacks));
  core_->loggers = std::move(resolved.loggers);
  core_->decisions = std::move(resolved.decisions);
  if (!core_->strategy->requires_launch()) core_->strategy->setup_environment();
  silence_loggers();
}

namespace {

/// For destructors: what fails is logged.
struct Leave {
  Fabric& fabric;
  ~Leave() {
    try {
      fabric.shutdown();
    } catch (const std::exception& error) {
      log::warn(std::string("shutdown: ") + error.what());
    } catch (...) {
      log::warn("shutdown: an exception that is no std::exception");
    }
  }
};

}  // namespace

Fabric::~Fabric() { Leave{*this}; }

// --- place

const std::shared_ptr<Strategy>& Fabric::strategy() const { return core_->strategy; }
const std::shared_ptr<Accelerator>& Fabric::accelerator() const { return core_->strategy->accelerator(); }
const std::shared_ptr<Precision>& Fabric::precision() const { return core_->strategy->precision(); }
c10::Device Fabric::device() const { return core_->strategy->root_device(); }
int Fabric::global_rank() const { return core_->strategy->ranks().rank; }
int Fabric::local_rank() const { return core_->strategy->ranks().local_rank; }
int Fabric::node_rank() const { return core_->strategy->ranks().node_rank; }
int Fabric::world_size() const { return core_->strategy->ranks().world_size; }
bool Fabric::is_global_zero() const { return core_->strategy->is_global_zero(); }
bool Fabric::launched() const { return core_->launched; }
const std::vector<std::shared_ptr<Logger>>& Fabric::loggers() const { return core_->loggers; }
int Fabric::models_setup() const { return core_->models_setup; }

Logger& Fabric::logger() const {
  if (core_->loggers.empty())
    throw MisuseError("no logger was given; set `loggers` in Fabric::Config or Fabric::Parts");
  return *core_->loggers.front();
}

std::string Fabric::describe() const {
  const Strategy& strategy = *core_->strategy;
  std::ostringstream text;
  text << "strategy " << strategy.name() << ", accelerator " << strategy.accelerator()->name() << ", device "
       << strategy.root_device() << ", precision " << strategy.precision()->name() << '\n'
       << strategy.ranks().to_string() << '\n';
  for (const auto& decision : core_->decisions) text << decision << '\n';
  return text.str();
}

// --- launch

namespace {

// What a function returned in rank 0, on its way to the process that started the ranks.
std::string pack(const Value& value) {
  std::vector<at::Tensor> none;
  auto bytes = collectives::encode(value, std::numeric_limits<std::int64_t>::max(), none);
  return {bytes.begin(), bytes.end()};
}

Value unpack(const std::string& bytes) {
  std::vector<at::Tensor> none;
  return collectives::decode(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), c10::kCPU, none);
}

}  // namespace

void Fabric::launch() {
  if (core_->launched) return;
  if (auto launcher = core_->strategy->make_launcher()) {
    if (launcher->needs_function())
      throw MisuseError("strategy " + core_->strategy->name() +
                        " starts its ranks to run a function: write fabric.launch([](fabric::Fabric& fabric) { … })");
    launcher->launch();
  }
  join_job();
}

void Fabric::join_job() {
  core_->strategy->setup_environment();
  core_->launched = true;
  silence_loggers();
}

// Ranks that run already know their place before launch, ranks that launch starts only after it.
void Fabric::silence_loggers() {
  if (is_global_zero()) return;
  for (auto& logger : core_->loggers) logger = std::make_shared<SilentLogger>(std::move(logger));
}

void Fabric::launch_function(const std::function<Value()>& run, bool& ran_here, Value& from_children) {
  auto launcher = core_->launched ? nullptr : core_->strategy->make_launcher();
  if (!launcher || !launcher->needs_function()) {
    if (launcher) launcher->launch();
    if (!core_->launched) join_job();
    ran_here = true;
    run();
    return;
  }
  std::string bytes = launcher->launch_function([&](const RankInfo&) {
    // The rank's process ends without coming back to whoever holds this Fabric.
    Leave leave{*this};
    join_job();
    ran_here = true;  // forgotten where this is another process
    Value result = run();
    // Each node hands its first rank's result back.
    std::string packed = local_rank() == 0 ? pack(result) : std::string();
    shutdown();
    return packed;
  });
  if (!ran_here) from_children = unpack(bytes);
}

void Fabric::require_launched(const char* what) const {
  if (core_->shut_down) throw MisuseError(std::string(what) + " was called after shutdown; make a new Fabric");
  if (core_->strategy->requires_launch() && !core_->launched)
    throw MisuseError(std::string(what) +
                      " was called before fabric.launch(). Call fabric.launch() first: it joins or " +
                      "starts the other ranks");
}

void Fabric::shutdown() {
  if (!core_ || core_->shut_down) return;
  core_->shut_down = true;
  // A disk that is full must not keep the rest from being put away.
  std::exception_ptr first;
  auto attempt = [&first](auto&& step) {
    try {
      step();
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  };
  bool unwinding = std::uncaught_exceptions() > core_->exceptions_at_start;
  for (const auto& logger : core_->loggers) attempt([&] { logger->finalize(unwinding ? "failed" : "success"); });
  attempt([&] { core_->strategy->teardown(); });
  if (first) std::rethrow_exception(first);
}

// --- setup

Fabric::SetUp Fabric::set_up(std::shared_ptr<torch::nn::Module> module, const std::vector<OptimizerSource>& optimizers,
                             const SetupOptions& options) {
  require_launched("setup");
  Strategy& strategy = *core_->strategy;
  if (!module) throw MisuseError("setup was given an empty module");
  std::erase_if(core_->modules, [](const auto& known) { return known.expired(); });
  for (const auto& known : core_->modules)
    if (auto core = known.lock(); core && &core->module() == module.get())
      throw MisuseError("this module is set up already: use the one that setup returned, and set it up only once");
  auto joint = strategy.setup_module_and_optimizers(module, optimizers, options);
  auto parameters = module->parameters();
  c10::Device where = options.move_to_device ? device()
                      : parameters.empty()   ? c10::Device(c10::kCPU)
                                             : parameters[0].device();
  auto core =
      std::make_shared<detail::ModuleCore>(core_->strategy, std::move(joint.module), core_->backward_depth, where);
  core_->modules.push_back(core);
  ++core_->models_setup;
  return {std::move(core), std::move(joint.optimizers)};
}

void Fabric::after_setup(torch::nn::Module& module) {
  for (const auto& callback : *core_->callbacks) callback->on_after_setup(*this, module);
}

FabricOptimizer Fabric::set_up_optimizer(const OptimizerSource& source) {
  if (source.make) throw MisuseError("a function that makes an optimizer needs a module: use setup(module, function)");
  require_launched("setup_optimizers");
  if (!source.ready) throw MisuseError("setup_optimizers was given an empty optimizer");
  if (core_->strategy->requires_joint_setup())
    throw MisuseError("strategy " + core_->strategy->name() +
                      " sets up optimizers together with their module: use fabric.setup(module, optimizer)");
  for (const auto& group : source.ready->param_groups())
    for (const auto& parameter : group.params())
      if (parameter.is_meta())
        throw MisuseError(
            "the optimizer holds parameters on the meta device, which have no content yet. Set the module up "
            "first, then make the optimizer over its parameters");
  return wrap_optimizer(core_->strategy->setup_optimizer(source.take(torch::nn::Module())));
}

FabricOptimizer Fabric::wrap_optimizer(OptimizerPtr optimizer) const {
  return FabricOptimizer(std::move(optimizer), core_->strategy, core_->callbacks);
}

LoaderContext Fabric::loader_context() const {
  LoaderContext context;
  context.shard = core_->strategy->sampler_shard();
  context.rank = global_rank();
  context.device = device();
  context.to_device = [strategy = core_->strategy](const at::Tensor& tensor) {
    return strategy->batch_to_device(tensor);
  };
  if (context.shard && context.shard->num_replicas > 1 && world_size() > 1)
    context.exchange = [strategy = core_->strategy](const Value& value) {
      collectives::Task task("agreeing on a loader's order");
      return strategy->process_group().all_gather_value(value);
    };
  core_->strategy->process_dataloader(context);
  return context;
}

at::TensorOptions Fabric::tensor_options() const {
  auto scope = init_tensor();
  return at::TensorOptions(device()).dtype(at::get_default_dtype());
}

Scope Fabric::init_tensor() const { return core_->strategy->tensor_init_context(); }

Scope Fabric::init_module(std::optional<bool> empty_init) const {
  require_launched("init_module");
  return core_->strategy->module_init_context(empty_init);
}

// --- the step

void Fabric::backward(const at::Tensor& loss, const BackwardOptions& options) {
  backward_through(loss, nullptr, options);
}

void Fabric::backward_through(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options) {
  struct Depth {
    std::atomic<int>& count;
    explicit Depth(std::atomic<int>& count) : count(count) { count.fetch_add(1, std::memory_order_relaxed); }
    ~Depth() { count.fetch_sub(1, std::memory_order_relaxed); }
  } inside(*core_->backward_depth);
  core_->strategy->backward(loss, module, options);
}

at::Tensor Fabric::clip(StrategyModule& module, torch::optim::Optimizer& optimizer, const ClipOptions& options) {
  if (options.clip_val.has_value() == options.max_norm.has_value())
    throw MisuseError(options.clip_val ? "clip_gradients was given clip_val and max_norm; give one of the two"
                                       : "clip_gradients needs clip_val or max_norm");
  if (options.clip_val) {
    module.clip_gradients_value(optimizer, *options.clip_val);
    return {};
  }
  return module.clip_gradients_norm(optimizer, *options.max_norm, options.norm_type, options.error_if_nonfinite);
}

Scope Fabric::autocast() const { return precision()->forward_context(); }

void Fabric::join_models(const std::vector<StrategyModule*>& modules, const JoinControl::Options& options,
                         const std::function<void()>& body) {
  if (auto* control = core_->strategy->join_control())
    control->join(modules, options, body);
  else if (world_size() == 1)
    body();
  else
    throw MisuseError("strategy " + core_->strategy->name() + " cannot join ranks with different numbers of batches");
}

at::Tensor Fabric::to_device(const at::Tensor& tensor) const { return core_->strategy->batch_to_device(tensor); }

// --- checkpoints

void Fabric::save(const std::filesystem::path& path, const State& state, const StateFilter& filter) const {
  save(path, state, SaveOptions{.filter = filter});
}

std::shared_ptr<SaveInProgress> Fabric::save(const std::filesystem::path& path, const State& state,
                                             const SaveOptions& options) const {
  require_launched("save");
  collectives::Task task("save");
  return core_->strategy->save_checkpoint(path, state, options);
}

Value Fabric::load(const std::filesystem::path& path, State& state, bool strict) const {
  require_launched("load");
  collectives::Task task("load");
  return core_->strategy->load_checkpoint(path, &state, strict);
}

Value Fabric::load(const std::filesystem::path& path, State& state, const LoadOptions& options) const {
  require_launched("load");
  collectives::Task task("load");
  return core_->strategy->load_checkpoint(path, &state, options);
}

Value Fabric::load(const std::filesystem::path& path) const {
  require_launched("load");
  collectives::Task task("load");
  return core_->strategy->load_checkpoint(path, nullptr);
}

void Fabric::load_raw(const std::filesystem::path& path, StateEntry object, bool strict) const {
  core_->strategy->load_raw(path, object, strict);
}

void Fabric::load_raw(const std::filesystem::path& path, StateEntry object, const LoadOptions& options) const {
  core_->strategy->load_raw(path, object, options);
}

// --- logs and callbacks

void Fabric::print_line(const std::string& line) const { std::cout << line << std::endl; }

namespace {

double metric_number(const std::string& name, const Value& value) {
  if (value.is_bool()) return value.as_bool();
  if (value.is_number()) return value.as_double();
  if (value.is<at::Tensor>() && value.as<at::Tensor>().numel() == 1) return value.as<at::Tensor>().item<double>();
  throw MisuseError("metric '" + name + "' must be a number or a tensor of one element, given " + to_string(value));
}

}  // namespace

void Fabric::log(const std::string& name, const Value& value, std::optional<std::int64_t> step) const {
  log_dict({{name, value}}, step);
}

void Fabric::log_dict(const std::map<std::string, Value>& metrics, std::optional<std::int64_t> step) const {
  Metrics numbers;
  for (const auto& [name, value] : metrics) numbers[name] = metric_number(name, value);
  for (const auto& logger : core_->loggers) logger->log_metrics(numbers, step);
}

void Fabric::call(const std::string& event, const Value::Map& arguments) {
  for (const auto& callback : *core_->callbacks) callback->call(*this, event, arguments);
}

}  // namespace fabric
