// Data-parallel training of one module: its gradients are averaged over the ranks while backward goes on.
//
// Source: S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (VLDB 2020).
// LibTorch's c10d::Reducer does the work: it lays gradients into buckets in the order in which they arrive, and reduces
// a bucket as soon as its last gradient is there. This file prepares it before each pass and finds out what it cannot.
//
// Invariants:
// - Every rank starts the same collectives in the same order: buffers after forward, buckets in the order of the
// layout.
// - A reduced pass begins with prepare_for_forward and prepare_for_backward; a pass inside no_sync calls neither.
// - The layout changes once, after the first pass, together on all ranks; never inside join.
// - Gradients that reach a parameter outside of such a pass are not averaged; that is an error and never silence.
#include "strategies/ddp/ddp_engine.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <unordered_set>

#include <fabric/state/tie.h>

#include "fabric/torch/messages_internal.h"
#include "strategies/ddp/bucket_hooks.h"
#include "strategies/ddp/collective_failure.h"
#include "strategies/ddp/ddp_join.h"

namespace fabric::ddp {
namespace {

const std::vector<at::Tensor> kNoOutputs;

// One node behind all outputs: a backward pass that starts from one of them reaches the parameters of all, those
// without a gradient included, so that the reducer hears of each.
struct SinkFunction : torch::autograd::Function<SinkFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, at::TensorList outputs) {
    context->set_materialize_grads(false);
    torch::autograd::variable_list same;
    for (const auto& output : outputs) same.push_back(output.detach());
    return same;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return gradients;
  }
};

std::int64_t megabytes(double value) { return static_cast<std::int64_t>(value * 1024 * 1024); }

// Which parameters get sparse gradients, as far as LibTorch's own modules tell.
std::unordered_set<const void*> sparse_parameters(const torch::nn::Module& module) {
  std::unordered_set<const void*> sparse;
  for (const auto& child : const_cast<torch::nn::Module&>(module).modules()) {
    if (auto* embedding = child->as<torch::nn::EmbeddingImpl>(); embedding && embedding->options.sparse())
      sparse.insert(embedding->weight.unsafeGetTensorImpl());
    if (auto* bag = child->as<torch::nn::EmbeddingBagImpl>(); bag && bag->options.sparse())
      sparse.insert(bag->weight.unsafeGetTensorImpl());
  }
  return sparse;
}

}  // namespace

Engine::Engine(std::shared_ptr<torch::nn::Module> module, const DDPStrategy::Config& config, const ProcessGroup& group,
               const ProcessGroup& traffic, std::shared_ptr<Modules> modules)
    : module_(std::move(module)),
      group_(group),
      traffic_(traffic),
      modules_(std::move(modules)),
      options_{.first_bucket_bytes = megabytes(config.first_bucket_mb),
               .find_unused_parameters = config.find_unused_parameters && !config.static_graph,
               .gradient_as_bucket_view = config.gradient_as_bucket_view},
      bucket_cap_mb_(config.bucket_cap_mb),
      static_graph_(config.static_graph),
      broadcast_buffers_(config.broadcast_buffers) {
  collect_parameters();
  if (group_.size() > 1) {
    if (!config.comm_hook.name.empty() || !config.comm_hook_wrapper.empty())
      hook_ = make_comm_hook(config.comm_hook.name.empty() ? Choice("allreduce") : config.comm_hook,
                             config.comm_hook_wrapper, traffic_);
    build({}, hook_);
  }
  modules_->engines.push_back(this);
}

Engine::~Engine() { std::erase(modules_->engines, this); }

void Engine::collect_parameters() {
  auto sparse = sparse_parameters(*module_);
  std::unordered_set<const void*> seen;  // tied weights count once
  for (auto& item : module_->named_parameters()) {
    const at::Tensor& param = item.value();
    if (!seen.insert(param.unsafeGetTensorImpl()).second) continue;
    if (!param.requires_grad()) {
      frozen_.push_back({item.key(), param});
      continue;
    }
    params_.push_back(param);
    names_.push_back(item.key());
    sparse_.push_back(sparse.count(param.unsafeGetTensorImpl()) > 0);
  }
}

// The reducer and the broadcast of buffers hand their tensors to LibTorch's group as they are; our own operations would
// go through the CPU.
void Engine::require_carrier() const {
  auto carried = traffic_.c10d()->getDeviceTypes();
  auto require = [&](const at::Tensor& tensor) {
    auto type = tensor.device().type();
    if (std::any_of(carried.begin(), carried.end(), [&](c10::Device device) { return device.type() == type; })) return;
    throw ConfigError(
        "ddp: the model is on " + tensor.device().str() + ", but the process group (backend '" + group_.backend() +
        "') carries CPU tensors only. Set process_group.backend to 'auto' or 'nccl' for a model on a GPU; "
        "instead of a group of your own, give one that ProcessGroup::wrap made over nccl and gloo; or "
        "train on the CPU with accelerator = cpu");
  };
  for (const auto& param : params_) require(param);
  if (!broadcast_buffers_) return;
  for (const auto& buffer : module_->buffers())
    if (buffer.defined()) require(buffer);
}

void Engine::parameters_changed() {
  if (modules_->join)
    throw MisuseError(
        "parameters were frozen or thawed inside join, whose ranks are at different steps; do it outside");
  if (reducer_ && reducer_->unfinished()) report_unfinished();
  if (active()) check_same_parameters(*module_, group_);
  params_.clear();
  frozen_.clear();
  names_.clear();
  sparse_.clear();
  collect_parameters();
  if (!active()) return;
  build({}, hook_);
  forwarded_ = false;
}

void Engine::build(const BucketLayout& layout, const std::shared_ptr<CommHook>& hook) {
  require_carrier();
  reducer_.reset();
  accumulators_.clear();
  if (!params_.empty()) build_reducer(layout, hook);
  current_hook_ = hook;
  static_seen_ = static_queued_ = false;
  buffers_.reset();
  if (!broadcast_buffers_) return;
  auto buffers = std::make_unique<BufferSync>(module_->buffers(), traffic_);
  if (!buffers->empty()) buffers_ = std::move(buffers);
}

void Engine::build_reducer(const BucketLayout& layout, const std::shared_ptr<CommHook>& hook) {
  options_.bucket_bytes = megabytes(bucket_cap_mb_.value_or(params_.front().is_cpu() ? 4 : 25));
  reducer_ = make_reducer(params_, names_, sparse_, traffic_.c10d(), options_, layout);
  lay_buckets();
  for (const auto& param : params_)
    accumulators_.push_back(torch::autograd::impl::try_get_grad_accumulator(param).get());
  if (static_graph_) reducer_->set_static_graph();
  if (hook) reducer_->register_comm_hook(std::make_unique<HookAdapter>(hook));
}

// Where the group moves tensors best.
void Engine::lay_buckets() {
  reducer_->lay_buckets_in([this](std::int64_t bytes) { return traffic_.empty({bytes}, at::kByte); });
}

bool Engine::moved() const {
  for (std::size_t i = 0; i < params_.size(); ++i)
    if (torch::autograd::impl::try_get_grad_accumulator(params_[i]).get() != accumulators_[i]) return true;
  return false;
}

void Engine::follow_move() {
  if (join_index_ < 0) return build({}, hook_);
  build(reducer_->bucket_layout(), current_hook_);
  reducer_->keep_layout();
}

void Engine::forward(ForwardCall& call) {
  if (!active() || no_sync_depth_ > 0 || modules_->gradients_local || !c10::GradMode::is_enabled()) {
    call.run(*module_);
    return;
  }
  require_told();
  if (!reducer_) {
    // Nothing is trained, but running statistics may follow the batches.
    call.run(*module_);
    if (module_->is_training()) share_buffers();
    return;
  }
  begin_forward();
  call.run(*module_);
  share_buffers();
  expect_backward(call);
}

// Its gradient would stay this rank's own.
void Engine::require_told() const {
  for (const auto& [name, param] : frozen_)
    if (param.requires_grad())
      throw MisuseError("parameter " + name +
                        " requires a gradient now, but did not when ddp was last told: its gradient would not be "
                        "synchronised. Call parameters_changed() of what setup returned, on every rank, whenever "
                        "requires_grad was changed");
}

void Engine::require_listed() const {
  if (modules_->join && join_index_ < 0)
    throw MisuseError("this model is trained inside join but was not listed there; pass all models to join");
}

void Engine::begin_forward() {
  if (failed_)
    throw CollectiveError(
        "an earlier backward pass of this model failed on its way; the ranks are no longer in step. "
        "Start again from the last checkpoint");
  require_listed();
  if (reducer_->unfinished()) report_unfinished();
  // module->to(device) and the like give parameters new gradient accumulators, which the reducer does not hear.
  if (moved()) follow_move();
  reducer_->prepare_for_forward();
  if (!reducer_->should_rebuild_buckets()) return;
  // What the reducer does is waited for inside LibTorch, where nothing finds out that a rank is elsewhere.
  traffic_.require_same("ddp step (rebuild of gradient buckets)", "");
  auto begin = std::chrono::steady_clock::now();
  try {
    PlainViews plain_views;
    reducer_->rebuild_buckets();
    lay_buckets();
  } catch (...) {
    throw_collective_failure(traffic_, "ddp step (rebuild of gradient buckets)", begin);
  }
}

void Engine::share_buffers() {
  if (!buffers_) return;
  require_listed();
  int src = modules_->join ? modules_->join->announce(JoinSession::kBuffers, join_index_, 0) : 0;
  auto begin = std::chrono::steady_clock::now();
  try {
    buffers_->broadcast(src);
  } catch (...) {
    throw_collective_failure(traffic_, "broadcast of buffers", begin);
  }
}

void Engine::expect_backward(ForwardCall& call) {
  forwarded_ = true;
  if (static_graph_ && !static_seen_) return expect_static(call);
  if (!options_.find_unused_parameters) return reducer_->prepare_for_backward(kNoOutputs);
  std::vector<at::Tensor> outputs;
  bool all_seen = call.for_each_output([&](at::Tensor& tensor) {
    if (tensor.requires_grad()) outputs.push_back(tensor);
  });
  if (!all_seen)
    throw MisuseError(
        "find_unused_parameters has to look into the model's result, whose type is unknown to it. Add "
        "FABRIC_TENSORS(Type, member, …) to the type, naming the members that hold tensors");
  reducer_->prepare_for_backward(outputs);
  if (outputs.empty()) return;
  auto sunk = SinkFunction::apply(at::TensorList(outputs));
  std::size_t next = 0;
  call.for_each_output([&](at::Tensor& tensor) {
    if (tensor.requires_grad()) tensor = sunk[next++];
  });
}

// The first backward pass counts how often each parameter gets a gradient; everything is reduced at its end.
void Engine::expect_static(ForwardCall& call) {
  bool hooked = false;
  call.for_each_output([&](at::Tensor& tensor) {
    if (!tensor.requires_grad()) return;
    hooked = true;
    tensor.register_hook([weak = weak_from_this()](const at::Tensor&) {
      auto engine = weak.lock();
      if (!engine || engine->static_queued_ || engine->no_sync_depth_ > 0) return;
      engine->static_queued_ = true;
      torch::autograd::Engine::get_default_engine().queue_callback([engine] {
        engine->traffic_.require_same("all-reduce of gradients", "");
        engine->reducer_->delay_all_reduce();
        engine->static_seen_ = true;
      });
    });
  });
  if (!hooked)
    throw MisuseError(
        "static_graph needs a result with a tensor that requires a gradient. If the result's type is your own, add "
        "FABRIC_TENSORS(Type, member, …) to it, naming the members that hold tensors");
  reducer_->prepare_for_backward(kNoOutputs);
}

void Engine::before_backward(const at::Tensor& loss) {
  if (!reducer_) return;
  reducer_->forget_unexpected_gradients();
  if (!forwarded_ || reducer_->armed() || no_sync_depth_ > 0 || modules_->gradients_local) return;
  // A second backward pass after the same forward passes is reduced as well.
  if (options_.find_unused_parameters)
    reducer_->prepare_for_backward({loss});
  else
    reducer_->prepare_for_backward(kNoOutputs);
}

void Engine::after_backward() {
  if (!reducer_ || !reducer_->took_unexpected_gradients()) return;
  if (!quiet()) report_around_wrapper();
  reducer_->forget_unexpected_gradients();
}

void Engine::after_optimizer_step() {
  if (reducer_ && !reducer_->armed()) forwarded_ = false;
}

void Engine::check_gradients() {
  if (reducer_->unfinished()) report_unfinished();
  report_around_wrapper();
}

void Engine::report_unfinished() {
  std::string message;
  try {
    reducer_->throw_if_unfinished();
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  }
  std::string named, advice;
  auto missing = torch_messages::indices_without_gradient(message);
  for (std::size_t i = 0; i < missing.size(); ++i) {
    if (missing[i] >= names_.size()) continue;
    const auto& name = names_[missing[i]];
    if (i < 5) named += (named.empty() ? " (" : ", ") + name;
    if (!advice.empty()) continue;
    advice = advice_to_tie(*module_, name);
    if (!params_[missing[i]].requires_grad())
      advice = name +
               " was frozen after setup: call parameters_changed() of what setup returned, on every rank, whenever "
               "requires_grad was changed";
  }
  if (!named.empty()) named += missing.size() > 5 ? ", …)" : ")";
  if (advice.empty())
    advice =
        "use the strategy ddp_find_unused_parameters_true (or find_unused_parameters = true), or let every parameter "
        "contribute to the loss";
  throw MisuseError(
      std::to_string(missing.size()) + " parameters" + named +
      " got no gradient in the last backward pass, so that its gradients were not synchronised: " + advice);
}

void Engine::report_around_wrapper() {
  reducer_->forget_unexpected_gradients();
  throw MisuseError(
      "gradients reached the parameters of a model set up with ddp (the first is " + names_.front() +
      ") by a forward pass that went around its wrapper, so that they were not synchronised over the ranks. Call the "
      "wrapped model: model(x), or model.call(&Net::method, …) for another method. With no_backward_sync, forward and "
      "backward must both be inside; several backward passes after one forward pass need fabric.backward(loss)");
}

Scope Engine::no_sync() {
  ++no_sync_depth_;
  return Scope([self = shared_from_this()] {
    if (--self->no_sync_depth_ == 0 && self->reducer_) self->reducer_->forget_unexpected_gradients();
  });
}

void Engine::enter_join(int index, std::shared_ptr<CommHook> hook) {
  join_index_ = index;
  if (!reducer_) return;
  build(reducer_->bucket_layout(), hook);
  // Ranks without data cannot take part in a change of the layout.
  reducer_->keep_layout();
}

void Engine::leave_join() {
  join_index_ = -1;
  failed_ = false;  // the new reducer has a clean state
  if (reducer_) build(reducer_->bucket_layout(), hook_);
}

void Modules::check_gradients(const torch::optim::Optimizer& optimizer) const {
  for (Engine* engine : engines) {
    if (!engine->active() || !engine->gradients_missing()) continue;
    std::unordered_set<const void*> owned;
    for (const auto& group : optimizer.param_groups())
      for (const auto& param : group.params()) owned.insert(param.unsafeGetTensorImpl());
    for (const auto& param : engine->params())
      if (owned.count(param.unsafeGetTensorImpl())) engine->check_gradients();
  }
}

}  // namespace fabric::ddp
