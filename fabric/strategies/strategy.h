#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <fabric/accelerators/accelerator.h>
#include <fabric/base/scope.h>
#include <fabric/launcher/launching.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/collectives/process_group.h>
#include <fabric/plugins/collectives/run_together.h>
#include <fabric/plugins/environments/cluster_environment.h>
#include <fabric/plugins/precision/precision.h>
#include <fabric/state/state.h>
#include <fabric/strategies/checkpointing.h>
#include <fabric/strategies/strategy_module.h>

namespace fabric {

/// Capability: ranks may run out of data at different times.
class FABRIC_API JoinControl {
 public:
  struct Options {
    /// Gradients are divided by the number of all ranks; off: by the number of those that still have data.
    bool divide_by_initial_world_size = true;
    /// Ends the loop with a MismatchError on every rank as soon as one rank has no more data.
    bool throw_on_early_termination = false;
    /// Their state, too, is copied from the rank that trained longest, so that training can go on afterwards.
    std::vector<torch::optim::Optimizer*> optimizers;
  };
  virtual ~JoinControl() = default;
  /// Runs `body`, this rank's training loop. A rank whose body has ended takes part in the others' communication until
  /// all have ended; then every rank gets the parameters and buffers of one that trained longest. Every model that
  /// `body` trains must be listed; other collectives are not allowed inside.
  virtual void join(const std::vector<StrategyModule*>& modules, const Options& options,
                    const std::function<void()>& body) = 0;
};

class ParallelStrategy;
struct LoaderContext;

/// How work is spread over devices and ranks. The user's loop talks to Fabric, Fabric to one Strategy. Everything that
/// FSDP, ZeRO, tensor parallelism or XLA does differently is a hook here; ask for capabilities, never for types.
class FABRIC_API Strategy {
 public:
  virtual ~Strategy();
  Strategy(const Strategy&) = delete;
  Strategy& operator=(const Strategy&) = delete;

  virtual std::string name() const = 0;

  // --- parts, given by the connector before anything else is called
  /// An object serves one Fabric, whose parts and modules it keeps: throws MisuseError the second time.
  void claim();
  const std::shared_ptr<fabric::Accelerator>& accelerator() const { return accelerator_; }
  const std::shared_ptr<fabric::Precision>& precision() const { return precision_; }
  const std::shared_ptr<fabric::CheckpointIO>& checkpoint_io() const { return checkpoint_io_; }
  virtual void set_accelerator(std::shared_ptr<fabric::Accelerator> accelerator);
  /// Throws ConfigError when the strategy cannot work with this precision.
  virtual void set_precision(std::shared_ptr<fabric::Precision> precision);
  virtual void set_checkpoint_io(std::shared_ptr<fabric::CheckpointIO> io);

  // --- capabilities
  /// Null: ranks must have as many batches as each other.
  virtual JoinControl* join_control() { return nullptr; }
  /// True when collectives and setup are errors before `Fabric::launch`.
  virtual bool requires_launch() const { return true; }
  /// True when optimizers can be set up only together with their module.
  virtual bool requires_joint_setup() const { return false; }
  /// True when a plain `loss.backward()` would be wrong and is refused.
  virtual bool requires_backward_call() const { return precision_ && precision_->requires_backward_call(); }
  /// How the sampler is to be sharded; empty: leave the user's sampler alone.
  using SamplerShard = fabric::SamplerShard;
  virtual std::optional<SamplerShard> sampler_shard() const { return std::nullopt; }
  /// Changes what loaders are told by `setup_dataloader`: another way to the device, say.
  virtual void process_dataloader(LoaderContext&) {}
  /// The adapter by which FinetuningScheduler freezes, thaws, saves and restores under this strategy ("base" where
  /// parameters stay as the user's module has them; see fabric/helpers/finetuning/strategy_adapter.h). Empty: it was
  /// not tried.
  virtual std::string finetuning_adapter() const { return ""; }
  /// Why this strategy should not be chosen by name on that accelerator; the one that runs there takes its place.
  virtual std::string reason_against(const fabric::Accelerator&) const { return ""; }

  // --- place
  /// Where this rank's parameters and batches go. Throws ConfigError when there is no device for the rank.
  virtual c10::Device root_device() const = 0;
  /// The devices that this object was made with; empty: the connector chooses them.
  virtual std::vector<c10::Device> own_devices() const { return {}; }
  /// The devices that the connector chose on this node: one per local rank, or all of one process.
  virtual void set_devices(std::vector<c10::Device> devices) = 0;
  /// This strategy as one of several processes, or null.
  virtual ParallelStrategy* parallel() { return nullptr; }
  virtual const RankInfo& ranks() const = 0;
  bool is_global_zero() const { return ranks().rank == 0; }
  /// All ranks' group; a group of one where there is no other rank.
  virtual const ProcessGroup& process_group() const = 0;
  /// How other ranks are started by `launch`; null: there are none to start.
  virtual std::unique_ptr<Launcher> make_launcher() { return nullptr; }
  /// Makes the device current and joins the process group; called by `launch` on each rank.
  virtual void setup_environment();

  // --- setup
  /// Holds while the user's code makes tensors.
  virtual Scope tensor_init_context();
  /// Holds while the user's code makes a module; a strategy that builds modules in parts does that here.
  virtual Scope module_init_context(std::optional<bool> empty_init);
  /// Moves the parameters and buffers of a module that is not set up, in place.
  virtual void module_to_device(torch::nn::Module& module);
  /// A tensor of a batch on `device`, by default the root device; without waiting where the device allows that.
  virtual at::Tensor batch_to_device(const at::Tensor& tensor, std::optional<c10::Device> device = std::nullopt);
  /// The module as this strategy runs it. It comes as the user made it: neither converted to the precision nor moved,
  /// and on the meta device after a `module_init_context` that put it there. A strategy may take it part by part; those
  /// whose ranks hold it whole begin with `place_module`. Throws MismatchError where the ranks' modules differ.
  virtual std::unique_ptr<StrategyModule> setup_module(std::shared_ptr<torch::nn::Module> module,
                                                       const SetupOptions& options = {});
  /// The optimizer that is stepped from now on: the given one, or one in its place.
  virtual std::shared_ptr<torch::optim::Optimizer> setup_optimizer(std::shared_ptr<torch::optim::Optimizer> optimizer);
  struct JointSetup {
    std::unique_ptr<StrategyModule> module;
    std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers;
  };
  /// Both at once, for strategies that change what the optimizers step. By default one after the other.
  virtual JointSetup setup_module_and_optimizers(std::shared_ptr<torch::nn::Module> module,
                                                 const std::vector<OptimizerSource>& optimizers,
                                                 const SetupOptions& options = {});

  // --- the step
  /// `module`: the model the loss belongs to, where the caller said so; may be null.
  virtual void backward(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options = {});
  /// The closure's loss, or an undefined tensor.
  virtual at::Tensor optimizer_step(torch::optim::Optimizer& optimizer, const Precision::Closure& closure);
  virtual void zero_grad(torch::optim::Optimizer& optimizer, bool set_to_none);

  // --- collectives; a group that is empty means all ranks
  /// A new tensor, without a gradient.
  virtual at::Tensor all_reduce(const at::Tensor& tensor, ReduceOp op, const ProcessGroup& group = {});
  virtual void all_reduce_(at::Tensor& tensor, ReduceOp op, const ProcessGroup& group = {});
  /// One tensor per rank. `sync_grads` lets gradients flow back to each rank's input.
  virtual std::vector<at::Tensor> all_gather(const at::Tensor& tensor, const ProcessGroup& group = {},
                                             bool sync_grads = false);
  virtual Value broadcast(const Value& value, int src = 0);
  virtual void barrier(const std::string& name = "");
  /// Whether all ranks decided so, or any did.
  virtual bool reduce_boolean_decision(bool decision, bool all = true);
  /// fabric::run_together over all ranks.
  void run_together(const std::string& operation, const std::function<void()>& work,
                    ErrorKind foreign = ErrorKind::other) const {
    fabric::run_together(process_group(), operation, work, foreign);
  }

  // --- checkpoints; every rank calls all that take a path, and a failure on any rank is an error on all
  virtual std::shared_ptr<SaveInProgress> save_checkpoint(const std::filesystem::path& path, const State& state,
                                                          const SaveOptions& options = {});
  /// Restores `state` in place and returns what it did not ask for; an empty state returns the whole checkpoint.
  virtual Value load_checkpoint(const std::filesystem::path& path, State* state, bool strict = true);
  /// The same with options.
  virtual Value load_checkpoint(const std::filesystem::path& path, State* state, const LoadOptions& options);
  /// The whole checkpoint for taking parts of it: its tensors may still be in the file (fabric/state/sharding.h).
  virtual Value open_checkpoint(const std::filesystem::path& path);
  /// A file that holds nothing but one module's or optimizer's state.
  virtual void load_raw(const std::filesystem::path& path, const StateEntry& object, bool strict = true);
  virtual void load_raw(const std::filesystem::path& path, const StateEntry& object, const LoadOptions& options);
  /// This rank's part; nothing is communicated.
  StatePart module_state(torch::nn::Module& module) const;
  virtual StatePart optimizer_state(torch::optim::Optimizer& optimizer) const;
  /// Take what is this rank's of a state that holds whole tensors.
  void load_module_state(torch::nn::Module& module, const Value& state, bool strict = true) const;
  virtual void load_optimizer_state(torch::optim::Optimizer& optimizer, const Value& state) const;
  /// What the above are to `save_state` and `load_state`.
  StateAccess state_access() const;

  // --- the modules that are set up, kept by their wrappers
  void add_module(StrategyModule& module) { modules_.push_back(&module); }
  void remove_module(StrategyModule& module) { std::erase(modules_, &module); }
  const std::vector<StrategyModule*>& modules() const { return modules_; }
  /// Null for a module that is not set up.
  StrategyModule* find_module(const torch::nn::Module& module) const;
  /// As StrategyModule::shard_of, for a tensor of any of them.
  std::optional<Shard> shard_of(const at::Tensor& tensor) const;

  /// Frees process group and device state; never waits for a peer. Safe to call twice.
  virtual void teardown();

 protected:
  Strategy() = default;
  /// Converts the whole module to the precision and moves it to the root device, in place.
  void place_module(torch::nn::Module& module, const SetupOptions& options);

 private:
  std::shared_ptr<fabric::Accelerator> accelerator_;
  std::shared_ptr<fabric::Precision> precision_;
  std::shared_ptr<fabric::CheckpointIO> checkpoint_io_;
  std::vector<StrategyModule*> modules_;
  std::weak_ptr<SaveInProgress> unfinished_;  // its owner's end is its end
  bool is_claimed_ = false;
};

/// Base of the strategies that run several processes: ranks from a ClusterEnvironment, collectives over one
/// ProcessGroup.
class FABRIC_API ParallelStrategy : public Strategy {
 public:
  explicit ParallelStrategy(ProcessGroup::Config group_config = {}) : group_config_(std::move(group_config)) {}

  const std::shared_ptr<ClusterEnvironment>& cluster_environment() const { return environment_; }
  void set_cluster_environment(std::shared_ptr<ClusterEnvironment> environment);
  /// The devices of this node, one per local rank.
  void set_devices(std::vector<c10::Device> devices) override;
  ParallelStrategy* parallel() override { return this; }
  void set_num_nodes(int num_nodes) { num_nodes_ = num_nodes; }
  /// Whose variables count; those of the process unless the connector says otherwise.
  void set_env_reader(std::shared_ptr<EnvReader> env) { env_ = std::move(env); }
  int num_nodes() const { return num_nodes_; }
  /// Uses a group that exists already (an MPI program's communicator, say) instead of making one, and never closes it.
  /// The ranks' places on their machines are known from `launch` on.
  void set_process_group(ProcessGroup group);
  bool has_own_group() const { return group_is_given_; }

  c10::Device root_device() const override;
  const RankInfo& ranks() const override { return ranks_; }
  const ProcessGroup& process_group() const override { return group_; }
  std::unique_ptr<Launcher> make_launcher() override;
  void setup_environment() override;
  std::optional<SamplerShard> sampler_shard() const override;
  at::Tensor all_reduce(const at::Tensor& tensor, ReduceOp op, const ProcessGroup& group = {}) override;
  void all_reduce_(at::Tensor& tensor, ReduceOp op, const ProcessGroup& group = {}) override;
  std::vector<at::Tensor> all_gather(const at::Tensor& tensor, const ProcessGroup& group = {},
                                     bool sync_grads = false) override;
  Value broadcast(const Value& value, int src = 0) override;
  void barrier(const std::string& name = "") override;
  bool reduce_boolean_decision(bool decision, bool all = true) override;
  void teardown() override;

 protected:
  /// "popen" (re-execute the command line), "copy" (fork), "auto" (copy where that is safe, popen elsewhere), "spawn"
  /// or "fork" (run a function in children).
  virtual std::string start_method() const { return "auto"; }
  const ProcessGroup::Config& group_config() const { return group_config_; }

 private:
  ProcessGroup::Config group_config_;
  std::shared_ptr<EnvReader> env_ = process_env();
  std::shared_ptr<ClusterEnvironment> environment_;
  std::vector<c10::Device> devices_;
  int num_nodes_ = 1;
  RankInfo ranks_;
  ProcessGroup group_ = ProcessGroup::single();
  bool group_is_given_ = false;
};

}  // namespace fabric
