#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fabric/strategies/ddp_comm_hooks.h>
#include <fabric/strategies/model_averaging.h>
#include <fabric/strategies/strategy.h>

namespace fabric {

namespace ddp {
class Engine;
class Modules;
class ModelAveraging;
}  // namespace ddp

/// Distributed data parallel: every rank has the whole model and a part of each batch; gradients are averaged over the
/// ranks in buckets while the backward pass still runs.
///
/// `setup` checks that all ranks have the same parameters (MismatchError naming the first difference, on every rank),
/// then copies parameters and buffers from rank 0. Call the model through its wrapper: gradients of a forward pass that
/// went around it are reported as a MisuseError by `backward`, or by the optimizer's step after a plain
/// `loss.backward()`.
class FABRIC_API DDPStrategy : public ParallelStrategy, public JoinControl {
 public:
  struct Config {
    /// Gradients are reduced in buckets of that size; 0 puts each gradient into its own. Empty: 25 on GPUs, 4 on the
    /// CPU, where what is reduced is then still in the cache.
    std::optional<double> bucket_cap_mb = {};
    /// Size of the bucket that is ready first, smaller so that communication starts early.
    double first_bucket_mb = 1;
    /// Gradients live in the buckets: saves a copy and their memory. A gradient tensor that is kept beyond its step is
    /// then overwritten by the next one; clone it.
    bool gradient_as_bucket_view = true;
    /// For models where some parameters get no gradient in some steps. Costs a walk over the graph in each forward.
    bool find_unused_parameters = false;
    /// The same parameters get gradients, in the same way, in every step: found out in the first one.
    bool static_graph = false;
    /// Every rank gets rank 0's buffers after each forward pass that trains.
    bool broadcast_buffers = true;
    /// Every rank gets rank 0's parameters and buffers in `setup`.
    bool init_sync = true;
    /// How a bucket is reduced: empty (a plain all-reduce), or a hook's name with its settings.
    Choice comm_hook = {};
    /// "", "fp16" or "bf16": sends the buckets in that type through `comm_hook`.
    std::string comm_hook_wrapper = {};
    /// Above 0: after `model_averaging_warmup` optimizer steps gradients stay local, and every that many steps the
    /// parameters are averaged over the ranks instead.
    std::int64_t model_averaging_period = 0;
    std::int64_t model_averaging_warmup = 0;
    ProcessGroup::Config process_group = {};
    /// How `launch` starts the other ranks: "auto", "popen", "copy", "spawn" or "fork" (see
    /// fabric/launcher/launching.h).
    std::string start_method = "auto";
    /// Throws ConfigError for settings that make no sense.
    void validate() const;
    FABRIC_FIELDS(Config, bucket_cap_mb, first_bucket_mb, gradient_as_bucket_view, find_unused_parameters, static_graph,
                  broadcast_buffers, init_sync, comm_hook, comm_hook_wrapper, model_averaging_period,
                  model_averaging_warmup, process_group, start_method)
  };

  DDPStrategy();
  explicit DDPStrategy(Config config);
  ~DDPStrategy() override;

  std::string name() const override { return "ddp"; }
  const Config& config() const { return config_; }
  JoinControl* join_control() override { return this; }
  std::string finetuning_adapter() const override { return "base"; }

  std::unique_ptr<StrategyModule> setup_module(std::shared_ptr<torch::nn::Module> module,
                                               const SetupOptions& options = {}) override;
  void backward(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options = {}) override;
  at::Tensor optimizer_step(torch::optim::Optimizer& optimizer, const Precision::Closure& closure) override;
  void teardown() override;

  void join(const std::vector<StrategyModule*>& modules, const JoinControl::Options& options,
            const std::function<void()>& body) override;

  /// The hook that reduces the module's buckets, for its state; null when there is none.
  std::shared_ptr<CommHook> comm_hook(StrategyModule& module);

 protected:
  std::string start_method() const override { return config_.start_method; }

 private:
  ddp::Engine& engine_of(StrategyModule& module, const char* what) const;
  [[noreturn]] void fail_backward(std::chrono::steady_clock::time_point begin);

  Config config_;
  /// Gradients travel apart from the caller's operations. Every rank calls it.
  const ProcessGroup& traffic();
  ProcessGroup traffic_;
  std::int64_t steps_ = 0;
  std::shared_ptr<ddp::Modules> modules_;
  std::unique_ptr<ddp::ModelAveraging> averaging_;
};

}  // namespace fabric
