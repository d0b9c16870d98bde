#include <fabric/strategies/strategy.h>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <set>

#include <fabric/base/log.h>

namespace fabric {

Strategy::~Strategy() = default;

void Strategy::claim() {
  if (is_claimed_)
    throw MisuseError("this strategy object was given to another Fabric before; make a new one, or name the strategy");
  is_claimed_ = true;
}

void Strategy::set_accelerator(std::shared_ptr<fabric::Accelerator> accelerator) {
  accelerator_ = std::move(accelerator);
}
void Strategy::set_precision(std::shared_ptr<fabric::Precision> precision) { precision_ = std::move(precision); }
void Strategy::set_checkpoint_io(std::shared_ptr<fabric::CheckpointIO> io) { checkpoint_io_ = std::move(io); }

void Strategy::setup_environment() { accelerator_->setup_device(root_device()); }

Scope Strategy::tensor_init_context() { return precision_->tensor_init_context(); }

// C++ modules allocate and initialise in their constructors, so that a hint to skip that work has nothing to act on
// here; strategies that support the meta device override this.
Scope Strategy::module_init_context(std::optional<bool>) { return precision_->module_init_context(); }

void Strategy::module_to_device(torch::nn::Module& module) { module.to(root_device()); }

at::Tensor Strategy::batch_to_device(const at::Tensor& tensor, std::optional<c10::Device> device) {
  c10::Device target = device.value_or(root_device());
  if (tensor.device() == target) return tensor;
  return tensor.to(target, /*non_blocking=*/!target.is_cpu());
}

namespace {

void warn_about_mixed_devices(const torch::nn::Module& module, c10::Device target) {
  std::set<std::string> devices;
  std::vector<std::string> elsewhere;
  auto parameters = module.named_parameters();
  for (const auto& parameter : parameters) {
    devices.insert(parameter.value().device().str());
    if (parameter.value().device() != parameters[0].value().device()) elsewhere.push_back(parameter.key());
  }
  if (devices.size() < 2) return;
  std::string names = elsewhere[0] + (elsewhere.size() > 1 ? ", " + elsewhere[1] : "");
  log::rank_zero_warn("the module has parameters on " + std::to_string(devices.size()) +
                      " devices; setup moves all to " + target.str() + ". " + std::to_string(elsewhere.size()) +
                      " are not where the first one is: " + names + (elsewhere.size() > 2 ? ", …" : "") +
                      ". To keep them, pass SetupOptions{.move_to_device = false}");
}

void require_content(const torch::nn::Module& module, const std::string& strategy) {
  auto require = [&](const auto& tensors) {
    for (const auto& item : tensors)
      if (item.value().defined() && item.value().is_meta())
        throw MisuseError("'" + item.key() + "' is on the meta device, which keeps no content, and strategy " +
                          strategy +
                          " cannot make it. Build the module on a real device, or use a strategy that builds modules "
                          "part by part");
  };
  require(module.named_parameters());
  require(module.named_buffers());
}

}  // namespace

void Strategy::place_module(torch::nn::Module& module, const SetupOptions& options) {
  if (options.move_to_device) require_content(module, name());
  precision_->convert_module(module);
  if (!options.move_to_device) return;
  warn_about_mixed_devices(module, root_device());
  module_to_device(module);
}

std::unique_ptr<StrategyModule> Strategy::setup_module(std::shared_ptr<torch::nn::Module> module,
                                                       const SetupOptions& options) {
  place_module(*module, options);
  return std::make_unique<StrategyModule>(*this, std::move(module));
}

std::shared_ptr<torch::optim::Optimizer> Strategy::setup_optimizer(std::shared_ptr<torch::optim::Optimizer> optimizer) {
  return optimizer;
}

Strategy::JointSetup Strategy::setup_module_and_optimizers(std::shared_ptr<torch::nn::Module> module,
                                                           const std::vector<OptimizerSource>& optimizers,
                                                           const SetupOptions& options) {
  JointSetup joint;
  joint.module = setup_module(module, options);
  for (const auto& source : optimizers) joint.optimizers.push_back(setup_optimizer(source.take(*module)));
  return joint;
}

void Strategy::backward(const at::Tensor& loss, StrategyModule*, const BackwardOptions& options) {
  precision_->backward(loss, options);
}

at::Tensor Strategy::optimizer_step(torch::optim::Optimizer& optimizer, const Precision::Closure& closure) {
  return precision_->optimizer_step(optimizer, closure);
}

void Strategy::zero_grad(torch::optim::Optimizer& optimizer, bool set_to_none) {
  optimizer.zero_grad(set_to_none);
  precision_->gradients_cleared(optimizer);
}

// Apart from the input, as it is with several ranks, so that a loop may change the result on either.
at::Tensor Strategy::all_reduce(const at::Tensor& tensor, ReduceOp, const ProcessGroup&) {
  return tensor.detach().clone();
}
void Strategy::all_reduce_(at::Tensor&, ReduceOp, const ProcessGroup&) {}
std::vector<at::Tensor> Strategy::all_gather(const at::Tensor& tensor, const ProcessGroup&, bool) { return {tensor}; }
Value Strategy::broadcast(const Value& value, int) { return value; }
void Strategy::barrier(const std::string&) {}
bool Strategy::reduce_boolean_decision(bool decision, bool) { return decision; }

// --- checkpoints

namespace {

ShardOf shards_of(const Strategy& strategy) {
  return [&strategy](const at::Tensor& tensor) { return strategy.shard_of(tensor); };
}

CheckpointContext checkpoint_context(const Strategy& strategy) {
  return {strategy.process_group(), strategy.checkpoint_io(), strategy.state_access()};
}

}  // namespace

StrategyModule* Strategy::find_module(const torch::nn::Module& module) const {
  for (auto* known : modules_)
    if (known->module().get() == &module) return known;
  return nullptr;
}

std::optional<Shard> Strategy::shard_of(const at::Tensor& tensor) const {
  for (const auto* module : modules_)
    if (auto shard = module->shard_of(tensor)) return shard;
  return std::nullopt;
}

StatePart Strategy::module_state(torch::nn::Module& module) const {
  if (auto* known = find_module(module)) return known->state();
  return module_part(module, shards_of(*this));
}

void Strategy::load_module_state(torch::nn::Module& module, const Value& state, bool strict) const {
  if (auto* known = find_module(module)) return known->load_state(state, strict);
  load_module_state_dict(module, state, strict, shards_of(*this));
}

StatePart Strategy::optimizer_state(torch::optim::Optimizer& optimizer) const {
  return {optimizer_state_dict(optimizer), optimizer_shards(optimizer, shards_of(*this))};
}

void Strategy::load_optimizer_state(torch::optim::Optimizer& optimizer, const Value& state) const {
  load_optimizer_state_dict(optimizer, state, shards_of(*this));
}

StateAccess Strategy::state_access() const {
  return {
      .get_module = [this](torch::nn::Module& module) { return module_state(module); },
      .set_module = [this](torch::nn::Module& module, const Value& state,
                           bool strict) { load_module_state(module, state, strict); },
      .get_optimizer = [this](torch::optim::Optimizer& optimizer) { return optimizer_state(optimizer); },
      .set_optimizer = [this](torch::optim::Optimizer& optimizer,
                              const Value& state) { load_optimizer_state(optimizer, state); },
      .check_module =
          [this](torch::nn::Module& module, const Value& state) {
            if (auto* known = find_module(module)) return known->check_state(state);
            check_module_state_dict(module, state, shards_of(*this));
          },
      .check_optimizer = [this](torch::optim::Optimizer& optimizer,
                                const Value& state) { check_optimizer_state_dict(optimizer, state, shards_of(*this)); },
      .rank = process_group().rank(),
  };
}

std::shared_ptr<SaveInProgress> Strategy::save_checkpoint(const std::filesystem::path& path, const State& state,
                                                          const SaveOptions& options) {
  // One is in flight at a time. What several ranks write they finish together, and here they are together.
  if (!options.alone)
    if (auto before = unfinished_.lock()) before->settle();
  auto saving = save_state(checkpoint_context(*this), path, state, options);
  if (!options.alone) unfinished_ = saving;
  return saving;
}

Value Strategy::load_checkpoint(const std::filesystem::path& path, State* state, bool strict) {
  return load_state(checkpoint_context(*this), path, state, {.strict = strict});
}

Value Strategy::load_checkpoint(const std::filesystem::path& path, State* state, const LoadOptions& options) {
  return load_state(checkpoint_context(*this), path, state, options);
}

Value Strategy::open_checkpoint(const std::filesystem::path& path) {
  return open_state(checkpoint_context(*this), path);
}

void Strategy::load_raw(const std::filesystem::path& path, const StateEntry& object, bool strict) {
  load_raw_state(checkpoint_context(*this), path, object, {.strict = strict});
}

void Strategy::load_raw(const std::filesystem::path& path, const StateEntry& object, const LoadOptions& options) {
  load_raw_state(checkpoint_context(*this), path, object, options);
}

void Strategy::teardown() {
  if (checkpoint_io_) {
    checkpoint_io_->async().finish();
    checkpoint_io_->teardown();
  }
  if (precision_) precision_->teardown();
  if (accelerator_) accelerator_->teardown();
}

}  // namespace fabric
