// Fully sharded data parallel as a strategy: settings become groups, types and units; the work is the engine's
// (strategies/sharded/).
#include <fabric/strategies/fsdp.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <iomanip>
#include <numeric>
#include <sstream>
#include <unordered_set>

#include <fabric/base/lifecycle.h>
#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>
#include <fabric/dispatch/operator_hooks.h>

#include "plugins/collectives/waits/activity.h"
#include "strategies/ddp/replica_sync.h"
#include "strategies/fsdp/fsdp_settings.h"
#include "strategies/sharded/materialize.h"
#include "strategies/sharded/sharded_module.h"

namespace fabric {

using fsdp::Types;
using sharded::Engine;
using sharded::PieceAccess;
using sharded::ShardedModule;

struct FSDPStrategy::Groups {
  ProcessGroup all, shards, replicas;
};

namespace {

Engine& engine_of(StrategyModule& module) { return static_cast<ShardedModule&>(module).engine(); }

void release_all(const std::vector<StrategyModule*>& modules) {
  for (auto* module : modules) engine_of(*module).release();
}

void require_unsharded(const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    if (dispatch::is_marked(item.value()))
      throw MisuseError("parameter " + item.key() +
                        " is sharded already: another model that is set up has it. Set up one module that holds both");
    if (item.value().is_inference())
      throw MisuseError("parameter " + item.key() + " was made in inference mode, so that it cannot be trained");
  }
}

// Running statistics in 16 bits would lose what they add up.
void cast_buffers(torch::nn::Module& module, const Types& types) {
  for (const auto& layer : module.modules()) {
    if (types.keeps_type(*layer)) continue;
    for (auto& buffer : layer->named_buffers(/*recurse=*/false))
      if (buffer.value().defined() && buffer.value().is_floating_point())
        buffer.value().set_data(buffer.value().to(*types.buffers));
  }
}

// Of the whole parameters that were cut.
void give_back_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

FSDPStrategy::FSDPStrategy() : FSDPStrategy(Config()) {}
FSDPStrategy::FSDPStrategy(Config config) : ParallelStrategy(config.process_group), config_(std::move(config)) {
  FABRIC_WARN_EXPERIMENTAL("FSDPStrategy");
  config_.validate();
}
FSDPStrategy::~FSDPStrategy() = default;

void FSDPStrategy::set_precision(std::shared_ptr<fabric::Precision> precision) {
  // One rank's infinity skips the step of all: they hold parts of the same gradients.
  precision->set_found_inf_hook([this](at::Tensor& found) { process_group().all_reduce_(found, ReduceOp::max); });
  ParallelStrategy::set_precision(std::move(precision));
}

void FSDPStrategy::set_checkpoint_io(std::shared_ptr<fabric::CheckpointIO> io) {
  const bool writes_parts = io && io->part_writer() != nullptr;
  if (config_.state_dict_type == "sharded" && !writes_parts) io = make_checkpoint_io("sharded");
  if (config_.state_dict_type == "full" && writes_parts)
    throw ConfigError("fsdp: state_dict_type 'full' is one file, but checkpoint_io '" + io->name() +
                      "' has every rank write its part; leave one of the two out");
  ParallelStrategy::set_checkpoint_io(std::move(io));
}

bool FSDPStrategy::is_hybrid() const { return config_.sharding_strategy.find("HYBRID") != std::string::npos; }

// Every rank makes the same groups, in the same order.
const FSDPStrategy::Groups& FSDPStrategy::groups() {
  const ProcessGroup& world = process_group();
  if (groups_ && (world.size() == 1 || world.all(groups_->all.is_usable()))) return *groups_;
  auto made = std::make_unique<Groups>();
  made->all = world.size() == 1 ? world : world.apart("parameters");
  const int size = world.size();
  int copy = size;
  if (config_.sharding_strategy == "NO_SHARD") copy = 1;
  if (is_hybrid()) copy = fsdp::ranks_of_a_copy(config_, ranks());
  if (copy == size) {
    made->shards = made->all;
    made->replicas = ProcessGroup::single();
  } else {
    auto group_of = [&](const std::vector<int>& members, const std::string& what) {
      auto group = made->all.subgroup(members, what + std::to_string(members.front()));
      return std::find(members.begin(), members.end(), world.rank()) != members.end() ? group : ProcessGroup();
    };
    made->shards = copy == 1 ? ProcessGroup::single() : ProcessGroup();
    for (int first = 0; copy > 1 && first < size; first += copy) {
      std::vector<int> members(static_cast<std::size_t>(copy));
      std::iota(members.begin(), members.end(), first);
      if (auto group = group_of(members, "shards"); group.is_set()) made->shards = group;
    }
    for (int place = 0; place < copy; ++place) {
      std::vector<int> members;
      for (int rank = place; rank < size; rank += copy) members.push_back(rank);
      if (copy == 1) {
        made->replicas = made->all;
      } else if (auto group = group_of(members, "replicas"); group.is_set()) {
        made->replicas = group;
      }
    }
  }
  groups_ = std::move(made);
  return *groups_;
}

Scope FSDPStrategy::module_init_context(std::optional<bool> empty_init) {
  auto outer = std::make_shared<Scope>(ParallelStrategy::module_init_context(empty_init));
  auto on_meta = std::make_shared<Scope>(empty_init.value_or(false) ? sharded::build_on_meta() : Scope());
  return Scope([outer, on_meta] {
    on_meta->close();
    outer->close();
  });
}

std::unique_ptr<StrategyModule> FSDPStrategy::setup_module(std::shared_ptr<torch::nn::Module> module,
                                                           const SetupOptions& options) {
  collectives::Task task("setup");
  const ProcessGroup& world = process_group();
  std::vector<sharded::UnitPlan> plans;
  const Types types = fsdp::types_of(config_, precision()->name());
  run_together("setup", [&] {
    require_unsharded(*module);
    precision()->convert_module(*module);
    plans = sharded::plan_units(*module, fsdp::unit_policy(config_, *module), config_.ignored);
    for (auto& plan : plans)
      for (auto& parameter : plan.parameters) parameter.keeps_type = types.keeps_type(*parameter.owner);
    if (types.buffers) cast_buffers(*module, types);
  });
  if (world.size() > 1) ddp::check_same_parameters(*module, world);

  const Groups& groups = this->groups();
  sharded::Settings settings{
      .all = groups.all,
      .shards = groups.shards,
      .replicas = groups.replicas,
      .device = root_device(),
      .home_device = config_.cpu_offload ? c10::Device(c10::kCPU) : root_device(),
      .param_type = types.params,
      .reduce_type = types.reduction,
      .reshard_after_forward = config_.sharding_strategy == "FULL_SHARD" || config_.sharding_strategy == "HYBRID_SHARD",
      .forward_prefetch = config_.forward_prefetch,
      .backward = fsdp::backward_prefetch_of(config_),
      .ahead = config_.limit_all_gathers ? std::size_t{1} : std::size_t{2}};
  auto engine = Engine::make(settings);
  // Unit by unit, so that no more than one of them is whole on the device.
  std::unordered_set<const void*> taken;
  for (const auto& plan : plans) {
    std::vector<at::Tensor> tensors;
    run_together("setup", [&] {
      sharded::materialize(plan, root_device(), config_.reset_parameters);
      for (const auto& [name, tensor, owner, keeps_type] : plan.parameters) {
        taken.insert(tensor.unsafeGetTensorImpl());
        if (options.move_to_device && tensor.device() != root_device())
          at::Tensor(tensor).set_data(tensor.detach().to(root_device()));
        tensors.push_back(tensor);
      }
    });
    if (world.size() > 1 && config_.sync_module_states) ddp::broadcast_tensors(tensors, world, 0);
    run_together("setup", [&] { engine->add_unit(plan); });
  }
  // Buffers of modules without parameters, and what is ignored.
  sharded::UnitPlan rest{"(rest)", {}, module->modules()};
  run_together("setup", [&] { sharded::materialize(rest, root_device(), config_.reset_parameters); });
  std::vector<at::Tensor> others;
  for (const auto& tensor : ddp::all_tensors(*module)) {
    if (!tensor.defined() || taken.contains(tensor.unsafeGetTensorImpl())) continue;
    if (options.move_to_device && tensor.device() != root_device())
      at::Tensor(tensor).set_data(tensor.detach().to(root_device()));
    others.push_back(tensor);
  }
  if (world.size() > 1 && config_.sync_module_states) ddp::broadcast_tensors(others, world, 0);
  engine->follow_requires_grad();
  give_back_free_memory();
  auto made = std::make_unique<ShardedModule>(*this, std::move(module), std::move(engine),
                                              sharded::Conversions{types.inputs, types.outputs});
  if (config_.activation_checkpointing.is_on())
    run_together("setup", [&] { apply_activation_checkpointing(*made, config_.activation_checkpointing); });
  return made;
}

namespace {

void require_parameters_of(const std::vector<const torch::nn::Module*>& modules,
                           const torch::optim::Optimizer& optimizer) {
  std::unordered_set<const void*> known;
  for (const auto* module : modules)
    for (const auto& parameter : module->parameters()) known.insert(parameter.unsafeGetTensorImpl());
  std::size_t strangers = 0;
  std::ostringstream first;
  for (const auto& group : optimizer.param_groups())
    for (const auto& parameter : group.params())
      if (!known.contains(parameter.unsafeGetTensorImpl()) && strangers++ == 0) first << parameter.sizes();
  if (strangers > 0)
    throw MisuseError("the optimizer steps " + std::to_string(strangers) +
                      " tensor(s) that are no parameters of a model that is set up with fsdp; the first has shape " +
                      first.str() +
                      ". Make the optimizer after the last change of which tensors the module has (assignments, "
                      "fabric::tie), set up all its models before it, and register tensors of your own in a module");
}

}  // namespace

Strategy::JointSetup FSDPStrategy::setup_module_and_optimizers(std::shared_ptr<torch::nn::Module> module,
                                                               const std::vector<OptimizerSource>& optimizers,
                                                               const SetupOptions& options) {
  std::vector<const torch::nn::Module*> trained{module.get()};
  for (const auto* known : modules()) trained.push_back(known->module().get());
  for (const auto& source : optimizers)
    if (source.ready) require_parameters_of(trained, *source.ready);  // before anything is changed
  JointSetup joint;
  joint.module = setup_module(module, options);
  for (const auto& source : optimizers) {
    auto optimizer = source.take(*module);
    require_parameters_of(trained, *optimizer);
    joint.optimizers.push_back(std::move(optimizer));
  }
  return joint;
}

std::shared_ptr<torch::optim::Optimizer> FSDPStrategy::setup_optimizer(
    std::shared_ptr<torch::optim::Optimizer> optimizer) {
  std::vector<const torch::nn::Module*> trained;
  for (const auto* known : modules()) trained.push_back(known->module().get());
  require_parameters_of(trained, *optimizer);
  return optimizer;
}

void FSDPStrategy::backward(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options) {
  collectives::Task task("fsdp step");
  try {
    ParallelStrategy::backward(loss, module, options);
  } catch (...) {
    for (auto* known : modules()) engine_of(*known).abandon();
    throw;
  }
}

at::Tensor FSDPStrategy::optimizer_step(torch::optim::Optimizer& optimizer, const Precision::Closure& closure) {
  release_all(modules());
  PieceAccess access;
  if (!closure) return ParallelStrategy::optimizer_step(optimizer, closure);
  return ParallelStrategy::optimizer_step(optimizer, [&] {
    at::Tensor loss = closure();
    release_all(modules());
    return loss;
  });
}

void FSDPStrategy::zero_grad(torch::optim::Optimizer& optimizer, bool set_to_none) {
  ParallelStrategy::zero_grad(optimizer, set_to_none);
  for (const auto& group : optimizer.param_groups())
    for (const auto& parameter : group.params())
      for (auto* module : modules()) engine_of(*module).forget_kept_gradients(parameter);
}

// --- checkpoints: pieces are read and written as they are

std::shared_ptr<SaveInProgress> FSDPStrategy::save_checkpoint(const std::filesystem::path& path, const State& state,
                                                              const SaveOptions& options) {
  release_all(modules());
  PieceAccess access;
  return ParallelStrategy::save_checkpoint(path, state, options);
}
Value FSDPStrategy::load_checkpoint(const std::filesystem::path& path, State* state, const LoadOptions& options) {
  release_all(modules());
  PieceAccess access;
  return ParallelStrategy::load_checkpoint(path, state, options);
}
Value FSDPStrategy::load_checkpoint(const std::filesystem::path& path, State* state, bool strict) {
  return load_checkpoint(path, state, LoadOptions{.strict = strict});
}
void FSDPStrategy::load_raw(const std::filesystem::path& path, const StateEntry& object, const LoadOptions& options) {
  release_all(modules());
  PieceAccess access;
  ParallelStrategy::load_raw(path, object, options);
}
void FSDPStrategy::load_raw(const std::filesystem::path& path, const StateEntry& object, bool strict) {
  load_raw(path, object, LoadOptions{.strict = strict});
}
StatePart FSDPStrategy::optimizer_state(torch::optim::Optimizer& optimizer) const {
  release_all(modules());
  PieceAccess access;
  return ParallelStrategy::optimizer_state(optimizer);
}
void FSDPStrategy::load_optimizer_state(torch::optim::Optimizer& optimizer, const Value& state) const {
  release_all(modules());
  PieceAccess access;
  ParallelStrategy::load_optimizer_state(optimizer, state);
}

void FSDPStrategy::teardown() {
  if (groups_) {
    const ProcessGroup& world = process_group();
    for (auto* group : {&groups_->shards, &groups_->replicas, &groups_->all})
      if (group->is_set() && !(*group == world)) group->shutdown();
    groups_.reset();
  }
  ParallelStrategy::teardown();
}

std::string FSDPStrategy::describe(const StrategyModule& module) const {
  const Engine& engine = engine_of(const_cast<StrategyModule&>(module));
  std::ostringstream text;
  std::size_t width = 4;
  for (const auto& unit : engine.units()) width = std::max(width, unit->name().size());
  text << std::left << std::setw(static_cast<int>(width)) << "unit"
       << "  parameters      elements  MB here  MB gathered\n";
  auto line = [&](const std::string& name, std::size_t count, std::int64_t elements, double here, double gathered) {
    text << std::left << std::setw(static_cast<int>(width)) << name << std::right << std::setw(12) << count
         << std::setw(14) << elements << std::fixed << std::setprecision(2) << std::setw(9) << here / 1e6
         << std::setw(13) << gathered / 1e6 << '\n';
  };
  std::size_t count = 0;
  std::int64_t elements = 0;
  double here = 0, largest = 0;
  for (const auto& unit : engine.units()) {
    std::int64_t unit_elements = 0;
    double unit_here = 0, unit_gathered = 0;
    for (const auto& parameter : unit->parameters()) {
      unit_elements += parameter->cut.numel();
      unit_here += static_cast<double>(parameter->cut.own_elements() * parameter->itemsize());
      unit_gathered += static_cast<double>(parameter->cut.padded() *
                                           static_cast<std::int64_t>(c10::elementSize(parameter->compute_type)));
    }
    line(unit->name(), unit->parameters().size(), unit_elements, unit_here, unit_gathered);
    count += unit->parameters().size();
    elements += unit_elements;
    here += unit_here;
    largest = std::max(largest, unit_gathered);
  }
  line("all", count, elements, here, largest);
  return text.str();
}

}  // namespace fabric
