#pragma once
// A sharded strategy as a user of the library would write one, over its public headers alone: each parameter is split
// on its first dimension, gathered when an operator first touches it, and split again when its gradient is there. It is
// slow and simple; it shows that a real one fits.

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <torch/torch.h>

#include <fabric/dispatch/operator_hooks.h>
#include <fabric/optim/clip.h>
#include <fabric/strategies/registry.h>
#include <fabric/strategies/strategy.h>

namespace halved {

using fabric::ReduceOp;
using fabric::Shard;

/// Gives a parameter another content. The tensor stays the one that the module's members, its dictionary and optimizers
/// hold; unlike set_data, content may also come to a tensor on the meta device.
inline void swap_content(const at::Tensor& parameter, const at::Tensor& content) {
  parameter.unsafeGetTensorImpl()->shallow_copy_from(content.detach().getIntrusivePtr());
}

/// One parameter over the ranks.
struct Split {
  std::string name;
  at::Tensor parameter;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0, rows = 0;  // this rank's; none for a parameter that every rank has
  bool is_split = false;
  bool gathered = false;
  at::Tensor gradient;  // of this rank's rows, from earlier backward passes

  Split(std::string name_, const at::Tensor& parameter_, const fabric::ProcessGroup& group)
      : name(std::move(name_)), parameter(parameter_), shape(parameter_.sizes().vec()), is_split(parameter_.dim() > 0) {
    if (!is_split) return;
    auto part = (shape[0] + group.size() - 1) / group.size();
    begin = std::min(group.rank() * part, shape[0]);
    rows = std::min(part, shape[0] - begin);
  }
  at::Tensor own_rows(const at::Tensor& whole) const {
    return is_split ? whole.narrow(0, begin, rows).clone() : whole.clone();
  }
  at::Tensor gather(const fabric::ProcessGroup& group) const {
    if (!is_split) return parameter.detach();
    return torch::cat(group.all_gather(parameter.detach(), /*uneven=*/true));
  }
};

class Module : public fabric::StrategyModule, public std::enable_shared_from_this<Module> {
 public:
  Module(fabric::Strategy& strategy, std::shared_ptr<torch::nn::Module> module, std::vector<Split> splits)
      : StrategyModule(strategy, std::move(module)), splits_(std::move(splits)) {
    for (std::size_t i = 0; i < splits_.size(); ++i) by_tensor_[splits_[i].parameter.unsafeGetTensorImpl()] = i;
    watch_ = std::make_shared<Watch>(*this);
  }

  bool intercepts_forward() const override { return true; }
  void call(fabric::ForwardCall& forward) override {
    try {
      fabric::dispatch::Activation watching(fabric::dispatch::Level::above_autograd, watch_);
      forward.run(*module());
    } catch (...) {
      for (auto& split : splits_) let_go(split);
      throw;
    }
    if (!at::GradMode::is_enabled())
      for (auto& split : splits_) let_go(split);
  }

  fabric::Scope no_backward_sync(bool enabled) override {
    if (!enabled) return {};
    ++local_;
    return fabric::Scope([this] { --local_; });
  }
  /// Averages the gradients of what was gathered, keeps this rank's rows of them, and lets the whole parameters go.
  void after_backward() {
    if (local_ > 0) return;
    for (auto& split : splits_) {
      if (!split.gathered) continue;
      at::Tensor whole = split.parameter.grad();
      if (split.parameter.requires_grad()) {
        if (!whole.defined()) whole = torch::zeros(split.shape, split.parameter.options());
        group().all_reduce_(whole, ReduceOp::mean);
        at::Tensor own = split.own_rows(whole);
        split.gradient = split.gradient.defined() ? split.gradient + own : own;
      }
      let_go(split);
    }
  }

  at::Tensor clip_gradients_norm(torch::optim::Optimizer& optimizer, double max_norm, double norm_type,
                                 bool error_if_nonfinite) override {
    fabric::Precision& precision = *strategy().precision();
    precision.unscale_gradients(optimizer);
    auto parameters = precision.main_params(optimizer);
    auto first_whole = std::partition(parameters.begin(), parameters.end(),
                                      [&](const at::Tensor& parameter) { return shard_of(parameter).has_value(); });
    bool largest = std::isinf(norm_type);
    auto power = [&](auto first, auto last) {
      auto norm = fabric::optim::total_grad_norm({first, last}, norm_type).to(at::kDouble);
      return largest ? norm : norm.pow(norm_type);
    };
    at::Tensor total = power(parameters.begin(), first_whole);
    group().all_reduce_(total, largest ? ReduceOp::max : ReduceOp::sum);
    at::Tensor replicated = power(first_whole, parameters.end());
    total = largest ? torch::maximum(total, replicated) : (total + replicated).pow(1 / norm_type);
    if (error_if_nonfinite && !precision.will_skip_step(optimizer) && !total.isfinite().item<bool>())
      throw fabric::MisuseError("the norm of the gradients is not finite");
    fabric::optim::scale_grads_to_norm(parameters, total, max_norm);
    return total;
  }

  std::optional<Shard> shard_of(const at::Tensor& tensor) const override {
    auto found = by_tensor_.find(tensor.unsafeGetTensorImpl());
    if (found == by_tensor_.end()) return std::nullopt;
    const Split& split = splits_[found->second];
    if (!split.is_split || split.gathered) return std::nullopt;
    std::vector<std::int64_t> offsets(split.shape.size(), 0);
    offsets[0] = split.begin;
    return Shard{split.shape, offsets};
  }

  /// A parameter's whole content; every rank calls it.
  at::Tensor whole(const at::Tensor& parameter) const {
    auto found = by_tensor_.find(parameter.unsafeGetTensorImpl());
    return found == by_tensor_.end() ? parameter.detach() : splits_[found->second].gather(group()).clone();
  }
  bool anything_gathered() const {
    return std::any_of(splits_.begin(), splits_.end(), [](const Split& split) { return split.gathered; });
  }

 private:
  /// Sees the first operator that touches a parameter.
  struct Watch : fabric::dispatch::Client {
    explicit Watch(Module& module) : module(module) {}
    void operator_called(fabric::dispatch::OperatorCall& call) override {
      for (const auto& argument : call.arguments()) {
        if (argument.isTensor()) module.touch(argument.toTensor());
        if (argument.isTensorList())
          for (const at::Tensor& tensor : argument.toTensorVector()) module.touch(tensor);
      }
      call.proceed();
    }
    Module& module;
  };

  const fabric::ProcessGroup& group() const { return strategy().process_group(); }
  void touch(const at::Tensor& tensor) {
    auto found = by_tensor_.find(tensor.unsafeGetTensorImpl());
    if (found == by_tensor_.end()) return;
    Split& split = splits_[found->second];
    if (split.gathered) return;
    at::NoGradGuard no_grad;
    at::Tensor whole = split.gather(group());
    split.gradient = split.parameter.grad();
    split.parameter.mutable_grad().reset();
    swap_content(split.parameter, whole);
    split.gathered = true;
  }
  void let_go(Split& split) {
    if (!split.gathered) return;
    at::NoGradGuard no_grad;
    swap_content(split.parameter, split.own_rows(split.parameter.detach()));
    split.parameter.mutable_grad() = split.gradient;
    split.gradient.reset();
    split.gathered = false;
  }

  std::vector<Split> splits_;
  std::map<const void*, std::size_t> by_tensor_;
  std::shared_ptr<Watch> watch_;
  int local_ = 0;
};

/// Puts what factory functions make on the meta device.
struct OnMeta : fabric::dispatch::Client {
  void operator_called(fabric::dispatch::OperatorCall& call) override {
    const auto& arguments = call.op().schema().arguments();
    for (std::size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].name() == "device") call.set_argument(i, c10::Device(c10::kMeta));
    call.proceed();
  }
};

class Strategy : public fabric::ParallelStrategy {
 public:
  std::string name() const override { return "halved"; }
  bool requires_backward_call() const override { return true; }
  std::string finetuning_adapter() const override { return "base"; }
  void set_precision(std::shared_ptr<fabric::Precision> precision) override {
    precision->set_found_inf_hook([this](at::Tensor& found) { process_group().all_reduce_(found, ReduceOp::max); });
    ParallelStrategy::set_precision(std::move(precision));
  }

  fabric::Scope module_init_context(std::optional<bool> empty_init) override {
    auto outer = std::make_shared<fabric::Scope>(ParallelStrategy::module_init_context(empty_init));
    if (!empty_init.value_or(false)) return fabric::Scope([outer] { outer->close(); });
    auto on_meta =
        std::make_shared<std::unique_ptr<fabric::dispatch::Activation>>(std::make_unique<fabric::dispatch::Activation>(
            fabric::dispatch::Level::above_autograd, std::make_shared<OnMeta>()));
    return fabric::Scope([outer, on_meta] {
      on_meta->reset();
      outer->close();
    });
  }

  /// Layer by layer: each is converted, filled, split and let go before the next one is looked at.
  std::unique_ptr<fabric::StrategyModule> setup_module(std::shared_ptr<torch::nn::Module> module,
                                                       const fabric::SetupOptions&) override {
    at::NoGradGuard no_grad;
    std::vector<Split> splits;
    std::set<const void*> seen;
    auto layers = module->named_modules();
    for (std::size_t i = layers.size(); i-- > 0;) {  // a module's parts before itself
      const auto& layer = layers[i];
      precision()->convert_module(*layer.value());
      for (auto& item : layer.value()->named_parameters(/*recurse=*/false)) {
        if (!seen.insert(item.value().unsafeGetTensorImpl()).second) continue;
        Split split((layer.key().empty() ? "" : layer.key() + ".") + item.key(), item.value(), process_group());
        at::Tensor whole = item.value().is_meta() ? filled(split) : item.value().detach().clone();
        process_group().broadcast_(whole, 0);
        swap_content(item.value(), split.own_rows(whole));
        splits.push_back(std::move(split));
      }
    }
    for (auto& buffer : module->buffers()) process_group().broadcast_(buffer, 0);
    return std::make_unique<Module>(*this, std::move(module), std::move(splits));
  }

  void backward(const at::Tensor& loss, fabric::StrategyModule* module,
                const fabric::BackwardOptions& options) override {
    ParallelStrategy::backward(loss, module, options);
    for (auto* known : modules()) static_cast<Module*>(known)->after_backward();
  }

 private:
  static at::Tensor filled(const Split& split) {
    auto generator = at::detail::createCPUGenerator(std::hash<std::string>()(split.name));
    return torch::empty(split.shape, split.parameter.options().device(c10::kCPU).requires_grad(false))
        .uniform_(-0.1, 0.1, generator);
  }
};

/// As a program registers a strategy of its own.
inline void register_strategy() {
  fabric::StrategyRegistry::instance().register_strategy(
      "halved", [](const fabric::Tree&) { return std::make_shared<Strategy>(); }, "splits parameters over the ranks",
      fabric::Tree::Map{}, /*override_existing=*/true);
}

}  // namespace halved
