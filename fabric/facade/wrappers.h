#pragma once

#include <atomic>
#include <concepts>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include <fabric/facade/callback.h>
#include <fabric/facade/typed_call.h>
#include <fabric/state/state.h>
#include <fabric/strategies/strategy.h>

namespace fabric {

namespace detail {

/// The part of a wrapped module that does not depend on its type. Shared by the copies of the handle.
class FABRIC_API ModuleCore {
 public:
  ModuleCore(std::shared_ptr<Strategy> strategy, std::unique_ptr<StrategyModule> module,
             std::shared_ptr<std::atomic<int>> backward_depth, c10::Device device);
  /// True when a call may go straight to the user's module.
  bool direct() const { return direct_ && !module_->forward_scope(); }
  /// Converts inputs, runs the call the strategy's way under the precision's context, converts and guards the outputs.
  void run(ForwardCall& call);
  ~ModuleCore() { strategy_->remove_module(*module_); }
  ModuleCore(const ModuleCore&) = delete;
  ModuleCore& operator=(const ModuleCore&) = delete;
  StrategyModule& strategy_module() { return *module_; }
  const std::shared_ptr<Strategy>& strategy() const { return strategy_; }
  torch::nn::Module& module() { return *module_->module(); }
  c10::Device device() const { return device_; }

 private:
  std::shared_ptr<Strategy> strategy_;
  std::unique_ptr<StrategyModule> module_;
  std::shared_ptr<std::atomic<int>> backward_depth_;
  c10::Device device_;
  bool direct_;
  bool converts_;
  bool guards_backward_;
};

template <class>
inline constexpr bool kNever = false;

/// The holders that TORCH_MODULE makes. False for a type that is only declared.
template <class M>
concept ModuleHolderLike = requires {
  typename M::ContainedType;
}
&&torch::detail::is_module_holder<M>::value;

/// How a user hands over a module: a TORCH_MODULE holder, a shared pointer, or the module itself as a temporary.
template <class M, class = void>
struct ModuleTraits {
  static constexpr bool kIsModule = false;
};
template <class Impl>
struct ModuleTraits<std::shared_ptr<Impl>, std::enable_if_t<std::is_base_of_v<torch::nn::Module, Impl>>> {
  static constexpr bool kIsModule = true;
  using ImplType = Impl;
  static std::shared_ptr<Impl> share(const std::shared_ptr<Impl>& pointer) { return pointer; }
};
template <class M>
struct ModuleTraits<M, std::enable_if_t<torch::detail::is_module_holder<M>::value>> {
  static constexpr bool kIsModule = true;
  using ImplType = typename M::ContainedType;
  static std::shared_ptr<ImplType> share(const M& holder) { return holder.ptr(); }
};
template <class M>
struct ModuleTraits<M, std::enable_if_t<std::is_base_of_v<torch::nn::Module, M>>> {
  static constexpr bool kIsModule = true;
  using ImplType = M;
  static std::shared_ptr<M> share(M&& module) { return std::make_shared<M>(std::move(module)); }
};

/// The module in any of these forms, shared; says what to write for others.
template <class M>
auto share_module(M&& module) {
  using Plain = std::decay_t<M>;
  if constexpr (!ModuleTraits<Plain>::kIsModule) {
    static_assert(kNever<M>,
                  "setup takes a module holder (TORCH_MODULE), a std::shared_ptr to a module, or a module as a "
                  "temporary");
  } else if constexpr (std::is_base_of_v<torch::nn::Module, Plain> && std::is_lvalue_reference_v<M>) {
    static_assert(kNever<M>,
                  "a module that is a variable cannot be shared with Fabric: make it with "
                  "`auto net = std::make_shared<Net>(...)` and write fabric.setup(net, ...), or hand it over with "
                  "fabric.setup(std::move(net), ...)");
  } else {
    return ModuleTraits<Plain>::share(std::forward<M>(module));
  }
}

}  // namespace detail

/// The user's module as Fabric runs it. A handle: copies share the module. Call it like the module itself; results have
/// the type that the module's own `forward` returns. Parameters keep their identity. Arguments may be copied on the
/// way; what a method changes in those that it takes by non-const reference reaches the caller's variables all the
/// same.
template <class M>
class FabricModule {
  static_assert(!detail::ModuleHolderLike<M>,
                "FabricModule takes the module's class and not its holder: after TORCH_MODULE(Net) write "
                "fabric::FabricModule<NetImpl>, or let a template or auto find the type");

 public:
  using Impl = M;
  FabricModule(std::shared_ptr<Impl> impl, std::shared_ptr<detail::ModuleCore> core)
      : impl_(std::move(impl)), core_(std::move(core)) {}

  template <class... Args>
  auto operator()(Args&&... args) const {
    return invoke(detail::Forward{}, std::forward<Args>(args)...);
  }
  template <class... Args>
  auto forward(Args&&... args) const {
    return (*this)(std::forward<Args>(args)...);
  }
  /// Runs another method, or a function over the module, as if it were `forward`: model.call(&Net::encode, x) or
  /// model.call([](Net& net, Tensor x) { … }, x).
  template <class Method, class... Args>
  requires(std::is_invocable_v<Method&, Impl&, std::decay_t<Args>&...>) auto call(Method method, Args&&... args) const {
    return invoke(std::move(method), std::forward<Args>(args)...);
  }

  /// The user's own module, for its members, parameters, train() and eval(). Calling its `forward` goes around the
  /// strategy; strategies that synchronise gradients report that as an error in backward.
  Impl* operator->() const { return impl_.get(); }
  Impl& operator*() const { return *impl_; }
  const std::shared_ptr<Impl>& module() const { return impl_; }
  c10::Device device() const { return core_->device(); }
  /// Of what is spread over ranks, this rank's part.
  Value state_dict() const { return strategy_module().state().values; }
  /// From whole tensors, of which each rank takes its own part.
  void load_state_dict(const Value& state, bool strict = true) const { strategy_module().load_state(state, strict); }
  StrategyModule& strategy_module() const { return core_->strategy_module(); }
  const std::shared_ptr<Strategy>& strategy() const { return core_->strategy(); }
  /// Tells the strategy that `requires_grad` of parameters was changed after `setup`; every rank calls it, before the
  /// next forward pass.
  void parameters_changed() const { strategy_module().parameters_changed(); }

 private:
  template <class Method, class... Args>
  auto invoke(Method method, Args&&... args) const {
    if (core_->direct()) return std::invoke(method, *impl_, args...);
    using Call = detail::TypedCall<Impl, Method, std::decay_t<Args>...>;
    Call call(std::move(method), {detail::Argument<std::decay_t<Args>>(std::forward<Args>(args))...});
    core_->run(call);
    if constexpr (std::is_void_v<typename Call::Raw>)
      call.take();
    else
      return call.take();
  }

  std::shared_ptr<Impl> impl_;
  std::shared_ptr<detail::ModuleCore> core_;
};

/// The user's optimizer as Fabric steps it. A handle: copies share the optimizer, and all of them see a new one after
/// `replace`.
class FABRIC_API FabricOptimizer {
 public:
  using Closure = Precision::Closure;
  FabricOptimizer(std::shared_ptr<torch::optim::Optimizer> optimizer, std::shared_ptr<Strategy> strategy,
                  std::shared_ptr<std::vector<std::shared_ptr<Callback>>> callbacks);

  /// The closure's loss, or an undefined tensor without one.
  at::Tensor step(const Closure& closure = nullptr) const;
  void zero_grad(bool set_to_none = true) const { strategy_->zero_grad(**optimizer_, set_to_none); }
  /// LibTorch's own optimizer: param_groups(), defaults(), state().
  torch::optim::Optimizer* operator->() const { return optimizer_->get(); }
  torch::optim::Optimizer& operator*() const { return **optimizer_; }
  const std::shared_ptr<torch::optim::Optimizer>& optimizer() const { return *optimizer_; }
  std::vector<torch::optim::OptimizerParamGroup>& param_groups() const { return (*optimizer_)->param_groups(); }
  const std::shared_ptr<Strategy>& strategy() const { return strategy_; }
  /// Makes this handle and its copies step another optimizer, over parameters of the same model, and returns the one
  /// before. Throws MisuseError for an empty one.
  std::shared_ptr<torch::optim::Optimizer> replace(std::shared_ptr<torch::optim::Optimizer> optimizer) const;
  Value state_dict() const { return strategy_->optimizer_state(**optimizer_).values; }
  void load_state_dict(const Value& state) const { strategy_->load_optimizer_state(**optimizer_, state); }

 private:
  std::shared_ptr<std::shared_ptr<torch::optim::Optimizer>> optimizer_;
  std::shared_ptr<Strategy> strategy_;
  std::shared_ptr<std::vector<std::shared_ptr<Callback>>> callbacks_;
};

/// True for what `Fabric::setup` returned.
template <class T>
struct IsWrapped : std::false_type {};
template <class M>
struct IsWrapped<FabricModule<M>> : std::true_type {};
template <>
struct IsWrapped<FabricOptimizer> : std::true_type {};
template <class T>
constexpr bool is_wrapped(const T&) {
  return IsWrapped<T>::value;
}

// What `save` and `load` see of each kind of handle.
template <class M>
torch::nn::Module& fabric_state_object(const FabricModule<M>& module) {
  return *module;
}
inline const std::shared_ptr<torch::optim::Optimizer>& fabric_state_object(const FabricOptimizer& optimizer) {
  return optimizer.optimizer();
}

// What torch::save and torch::load find for a handle.
template <class Archive, class M>
requires std::is_base_of_v<torch::serialize::OutputArchive, Archive> Archive& operator<<(Archive& archive,
                                                                                         const FabricModule<M>&) {
  static_assert(detail::kNever<M>,
                "torch::save takes LibTorch's own modules: write torch::save(model.module(), path), or "
                "fabric.save(path, {{\"model\", model}})");
  return archive;
}
template <class Archive, class M>
requires std::is_base_of_v<torch::serialize::InputArchive, Archive> Archive& operator>>(Archive& archive,
                                                                                        FabricModule<M>&) {
  static_assert(detail::kNever<M>,
                "torch::load takes LibTorch's own modules: write auto net = model.module(); torch::load(net, path), or "
                "fabric.load(path, state)");
  return archive;
}
template <class Archive, std::same_as<FabricOptimizer> O>
requires std::is_base_of_v<torch::serialize::OutputArchive, Archive> Archive& operator<<(Archive& archive, const O&) {
  static_assert(detail::kNever<O>,
                "torch::save takes LibTorch's own optimizers: write torch::save(*optimizer, path), or "
                "fabric.save(path, {{\"optimizer\", optimizer}})");
  return archive;
}
template <class Archive, std::same_as<FabricOptimizer> O>
requires std::is_base_of_v<torch::serialize::InputArchive, Archive> Archive& operator>>(Archive& archive, O&) {
  static_assert(detail::kNever<O>,
                "torch::load takes LibTorch's own optimizers: write torch::load(*optimizer, path), or "
                "fabric.load(path, state)");
  return archive;
}

}  // namespace fabric
