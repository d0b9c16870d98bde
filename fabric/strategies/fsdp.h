#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/nn/module.h>

#include <fabric/strategies/activation_checkpointing.h>
#include <fabric/strategies/strategy.h>

namespace fabric {

/// The module class whose objects are units, for FSDPStrategy::Config::wrap_if: `config.wrap_if = Unit<BlockImpl>()`.
template <class M>
struct Unit {
  bool operator()(const std::string& /*name*/, const torch::nn::Module& module) const {
    return dynamic_cast<const M*>(&module) != nullptr;
  }
};

/// Fully sharded data parallel: every rank has a part of each parameter, of its gradient and of the optimizer's state.
/// The parameters of a unit are gathered while an operator needs them; gradients are averaged over the ranks and each
/// keeps its part. The module's class stays as it is: what is sharded are the contents of its parameters, which
/// members, dictionary and optimizers share as before. @experimental: run on the CPU; not yet on GPUs.
class FABRIC_API FSDPStrategy : public ParallelStrategy {
 public:
  struct MixedPrecision {
    /// "fp32", "fp64", "bf16", "fp16"; empty: what the precision says (16 bits under 16-* and bf16-*), or no change.
    std::string param_dtype = {};
    std::string reduce_dtype = {};
    /// Of buffers, other than those of batch norms.
    std::string buffer_dtype = {};
    /// Of floating tensors in the model's result.
    std::string output_dtype = {};
    /// Floating tensors among the model's arguments become param_dtype.
    bool cast_forward_inputs = true;
    FABRIC_FIELDS(MixedPrecision, param_dtype, reduce_dtype, buffer_dtype, output_dtype, cast_forward_inputs)
  };
  struct Config {
    /// "FULL_SHARD", "SHARD_GRAD_OP" (gathered units stay until their gradients are reduced), "NO_SHARD", and over
    /// several nodes "HYBRID_SHARD" and "_HYBRID_SHARD_ZERO2": sharded within a node, averaged across.
    std::string sharding_strategy = "FULL_SHARD";
    /// Which modules are units: "blocks" (the children of module lists and sequences; what remains by child of the
    /// root), "size" (of at least min_num_params), "none" (the whole model is one).
    std::string auto_wrap_policy = "blocks";
    std::int64_t min_num_params = 100'000'000;
    /// Instead: patterns of dotted names or of class names; `*` stands for any text.
    std::vector<std::string> wrap = {};
    /// Instead, in code: a function of name and module, or fabric::Unit<BlockImpl>().
    std::function<bool(const std::string& name, const torch::nn::Module& module)> wrap_if = {};
    /// Patterns of modules and parameters that stay whole on each rank; their gradients are not synchronised.
    std::vector<std::string> ignored = {};
    /// Fills the own parameters and buffers of a module that was built without storage; called unit by unit, a module's
    /// parts before itself. Empty: LibTorch's layers are known.
    std::function<void(torch::nn::Module& module)> reset_parameters = {};
    MixedPrecision mixed_precision = {};
    /// Parameters, gradients and the optimizer's state are in host memory.
    bool cpu_offload = false;
    /// Every rank begins with rank 0's parameters and buffers.
    bool sync_module_states = true;
    /// "full" (one file), "sharded" (a folder that every rank writes its part of); empty: as Fabric's `checkpoint_io`.
    std::string state_dict_type = {};
    /// {replicas, ranks that share a copy} of the hybrid strategies; empty: a copy per node.
    std::vector<std::int64_t> device_mesh = {};
    /// Units are gathered while those before them compute, in the order of the last pass. In the backward pass:
    /// "BACKWARD_PRE" (before a unit's gradients are computed), "BACKWARD_POST" (after they are reduced: less memory),
    /// "none".
    std::string backward_prefetch = "BACKWARD_PRE";
    bool forward_prefetch = false;
    /// At most one unit is gathered ahead; false: two.
    bool limit_all_gathers = true;
    /// What is computed again in the backward pass; with a policy in code, too.
    ActivationCheckpointing::Config activation_checkpointing = {.mode = "none"};
    /// Parameters are always the module's own.
    bool use_orig_params = true;
    ProcessGroup::Config process_group = {};
    /// As DDPStrategy::Config::start_method.
    std::string start_method = "auto";
    /// Throws ConfigError for settings that make no sense, and for those of PyTorch's that are not there.
    void validate() const;
    FABRIC_FIELDS(Config, sharding_strategy, auto_wrap_policy, min_num_params, wrap, ignored, mixed_precision,
                  cpu_offload, sync_module_states, state_dict_type, device_mesh, backward_prefetch, forward_prefetch,
                  limit_all_gathers, activation_checkpointing, use_orig_params, process_group, start_method)
  };

  FSDPStrategy();
  explicit FSDPStrategy(Config config);
  ~FSDPStrategy() override;

  std::string name() const override { return "fsdp"; }
  const Config& config() const { return config_; }
  std::string finetuning_adapter() const override { return "fsdp"; }
  void set_precision(std::shared_ptr<fabric::Precision> precision) override;
  void set_checkpoint_io(std::shared_ptr<fabric::CheckpointIO> io) override;

  /// `empty_init` = true: the module gets no storage; setup fills it unit by unit.
  Scope module_init_context(std::optional<bool> empty_init) override;
  std::unique_ptr<StrategyModule> setup_module(std::shared_ptr<torch::nn::Module> module,
                                               const SetupOptions& options = {}) override;
  /// Both throw MisuseError for an optimizer over tensors that are no parameters of a model that is set up.
  JointSetup setup_module_and_optimizers(std::shared_ptr<torch::nn::Module> module,
                                         const std::vector<OptimizerSource>& optimizers,
                                         const SetupOptions& options = {}) override;
  std::shared_ptr<torch::optim::Optimizer> setup_optimizer(std::shared_ptr<torch::optim::Optimizer> optimizer) override;
  void backward(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options = {}) override;
  at::Tensor optimizer_step(torch::optim::Optimizer& optimizer, const Precision::Closure& closure) override;
  void zero_grad(torch::optim::Optimizer& optimizer, bool set_to_none) override;

  std::shared_ptr<SaveInProgress> save_checkpoint(const std::filesystem::path& path, const State& state,
                                                  const SaveOptions& options = {}) override;
  using ParallelStrategy::load_checkpoint;
  Value load_checkpoint(const std::filesystem::path& path, State* state, const LoadOptions& options) override;
  Value load_checkpoint(const std::filesystem::path& path, State* state, bool strict = true) override;
  void load_raw(const std::filesystem::path& path, const StateEntry& object, const LoadOptions& options) override;
  void load_raw(const std::filesystem::path& path, const StateEntry& object, bool strict = true) override;
  StatePart optimizer_state(torch::optim::Optimizer& optimizer) const override;
  void load_optimizer_state(torch::optim::Optimizer& optimizer, const Value& state) const override;
  void teardown() override;

  /// A table of the module's units: name, parameters, elements, and bytes on this rank and gathered.
  std::string describe(const StrategyModule& module) const;

 protected:
  std::string start_method() const override { return config_.start_method; }

 private:
  struct Groups;
  const Groups& groups();
  bool is_hybrid() const;

  Config config_;
  std::unique_ptr<Groups> groups_;
};

}  // namespace fabric
