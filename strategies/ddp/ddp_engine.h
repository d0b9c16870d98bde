#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

#include <fabric/strategies/ddp.h>

#include "fabric/torch/grad_reducer_internal.h"
#include "strategies/ddp/replica_sync.h"

namespace fabric::ddp {

class Engine;
class JoinSession;

/// The modules that one strategy has set up, and what they share.
class Modules {
 public:
  std::vector<Engine*> engines;
  /// Model averaging is past its warm-up: gradients are not reduced.
  bool gradients_local = false;
  /// Set while `join` runs.
  JoinSession* join = nullptr;

  /// Throws MisuseError when a module of this optimizer's has gradients that were not reduced.
  void check_gradients(const torch::optim::Optimizer& optimizer) const;
};

/// Keeps one module's replicas equal: the work of ddp around forward and backward.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  /// `traffic`: the same ranks as `group`, over which gradients and buffers go.
  Engine(std::shared_ptr<torch::nn::Module> module, const DDPStrategy::Config& config, const ProcessGroup& group,
         const ProcessGroup& traffic, std::shared_ptr<Modules> modules);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// False with one rank, where there is nothing to do.
  bool active() const { return group_.size() > 1; }
  const std::shared_ptr<torch::nn::Module>& module() const { return module_; }
  const std::vector<at::Tensor>& params() const { return params_; }
  const ProcessGroup& group() const { return group_; }
  const ProcessGroup& traffic() const { return traffic_; }
  const std::shared_ptr<CommHook>& hook() const { return hook_; }
  GradReducer& reducer() { return *reducer_; }
  BufferSync* buffers() { return buffers_.get(); }
  bool finds_unused() const { return options_.find_unused_parameters; }

  void forward(ForwardCall& call);
  /// Starts anew with the parameters that require gradients now.
  void parameters_changed();
  /// Around each backward pass that Fabric runs. `after_backward` throws MisuseError for gradients of a forward pass
  /// that went around the wrapper.
  void before_backward(const at::Tensor& loss);
  void after_backward();
  void after_optimizer_step();
  /// The slow half of Modules::check_gradients.
  void check_gradients();
  bool gradients_missing() const {
    return !quiet() && (reducer_->took_unexpected_gradients() || reducer_->unfinished());
  }

  Scope no_sync();
  /// Its parameters belong to another wrapper as well, so that gradients of unknown origin are no sign of misuse.
  void tolerate_foreign_gradients() { tolerant_ = true; }
  void mark_failed() { failed_ = true; }
  /// A backward pass threw; its reduction may have stopped half-way.
  void backward_failed() { failed_ |= reducer_ && reducer_->unfinished(); }

  /// Replaces the way buckets are reduced, and forbids changes of their layout, until `leave_join`.
  void enter_join(int index, std::shared_ptr<CommHook> hook);
  void leave_join();

 private:
  bool quiet() const { return !reducer_ || no_sync_depth_ > 0 || modules_->gradients_local || tolerant_; }
  void collect_parameters();
  /// Throws ConfigError when the group cannot carry the model's tensors.
  void require_carrier() const;
  /// Throws MisuseError for a parameter that was thawed without a word, and inside `join` for a model it does not know.
  void require_told() const;
  void require_listed() const;
  void build(const BucketLayout& layout, const std::shared_ptr<CommHook>& hook);
  void build_reducer(const BucketLayout& layout, const std::shared_ptr<CommHook>& hook);
  void lay_buckets();
  bool moved() const;
  void follow_move();
  void begin_forward();
  void share_buffers();
  void expect_backward(ForwardCall& call);
  void expect_static(ForwardCall& call);
  [[noreturn]] void report_unfinished();
  [[noreturn]] void report_around_wrapper();

  std::shared_ptr<torch::nn::Module> module_;
  ProcessGroup group_, traffic_;
  std::shared_ptr<Modules> modules_;
  ReducerOptions options_;
  std::optional<double> bucket_cap_mb_;
  bool static_graph_;
  bool broadcast_buffers_;
  std::vector<at::Tensor> params_;  // those that require gradients
  std::vector<std::pair<std::string, at::Tensor>> frozen_;
  std::vector<std::string> names_;
  std::vector<bool> sparse_;
  std::shared_ptr<CommHook> hook_;          // of the settings
  std::shared_ptr<CommHook> current_hook_;  // what the reducer calls
  ReducerPtr reducer_;                      // none with one rank, or when nothing requires a gradient
  /// The nodes that add gradients to the parameters, which the reducer listens to and keeps alive; for comparison only.
  std::vector<const void*> accumulators_;
  std::unique_ptr<BufferSync> buffers_;
  int no_sync_depth_ = 0;
  int join_index_ = -1;
  bool forwarded_ = false;  // a reduced forward pass since the last optimizer step
  bool tolerant_ = false;
  bool failed_ = false;
  bool static_seen_ = false;  // the static graph's first backward pass is done
  bool static_queued_ = false;
};

/// What the user's wrapper owns.
class WrappedModule : public StrategyModule {
 public:
  WrappedModule(Strategy& strategy, std::shared_ptr<Engine> engine)
      : StrategyModule(strategy, engine->module()), engine_(std::move(engine)) {}
  bool intercepts_forward() const override { return engine_->active(); }
  void call(ForwardCall& forward) override { engine_->forward(forward); }
  Scope no_backward_sync(bool enabled) override { return enabled ? engine_->no_sync() : Scope(); }
  void parameters_changed() override { engine_->parameters_changed(); }

 private:
  std::shared_ptr<Engine> engine_;
};

}  // namespace fabric::ddp
