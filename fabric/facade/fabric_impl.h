#pragma once
// The templates of fabric/fabric.h; included from there.

#include <fabric/fabric.h>

namespace fabric {
namespace detail {

template <class T>
struct IsOptions : std::is_same<std::decay_t<T>, SetupOptions> {};

/// Refuses, before anything is changed, what optimizer_source or the strategy would refuse later.
template <class O>
void require_optimizer(const O& optimizer) {
  if constexpr (std::is_same_v<O, FabricOptimizer>)
    throw MisuseError("this optimizer is set up already: use the one that setup returned, and set it up only once");
  else if constexpr (std::is_convertible_v<const O&, std::shared_ptr<torch::optim::Optimizer>>)
    if (!optimizer) throw MisuseError("setup was given an empty optimizer");
}

/// An optimizer in any of the forms a caller may hold it. A function is borrowed.
template <class O>
OptimizerSource optimizer_source(O&& optimizer) {
  using Plain = std::decay_t<O>;
  if constexpr (std::is_same_v<Plain, FabricOptimizer>) {
    require_optimizer(optimizer);
    return {};
  } else if constexpr (std::is_convertible_v<O, std::shared_ptr<torch::optim::Optimizer>>) {
    return {.ready = std::forward<O>(optimizer)};
  } else if constexpr (std::is_base_of_v<torch::optim::Optimizer, Plain>) {
    if constexpr (std::is_lvalue_reference_v<O>)  // the caller keeps it alive
      return {.ready = std::shared_ptr<torch::optim::Optimizer>(std::shared_ptr<void>(), &optimizer)};
    else
      return {.ready = std::make_shared<Plain>(std::forward<O>(optimizer))};
  } else if constexpr (std::is_invocable_v<O&, std::vector<at::Tensor>>) {
    return {.make = [&optimizer](std::vector<at::Tensor> parameters) {
      return optimizer_source(optimizer(std::move(parameters))).ready;
    }};
  } else {
    static_assert(std::is_base_of_v<torch::optim::Optimizer, Plain>,
                  "setup takes torch::optim optimizers, shared or unique pointers to them, or functions "
                  "from parameters to an optimizer");
  }
}

template <class T>
constexpr bool kHoldsValue = std::is_same_v<T, Value> || std::is_constructible_v<Value, T>;

template <class T>
T from_value(const Value& value) {
  if constexpr (std::is_same_v<T, Value>)
    return value;
  else if constexpr (std::is_same_v<T, bool>)
    return value.as_bool();
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(value.as_int());
  else if constexpr (std::is_floating_point_v<T>)
    return static_cast<T>(value.as_double());
  else if constexpr (std::is_same_v<T, at::Tensor>)
    return value.template as<at::Tensor>();
  else if constexpr (std::is_same_v<T, std::string>)
    return value.as_string();
  else
    return value.template as<T>();
}

}  // namespace detail

template <class Function>
auto Fabric::launch(Function&& function) {
  using Result = std::invoke_result_t<Function&, Fabric&>;
  bool ran_here = false;
  Value from_children;
  if constexpr (std::is_void_v<Result>) {
    launch_function([&] { return function(*this), Value(); }, ran_here, from_children);
  } else {
    std::optional<Result> own;
    launch_function(
        [&]() -> Value {
          own.emplace(function(*this));
          if constexpr (detail::kHoldsValue<Result>)
            return Value(*own);
          else
            return Value();
        },
        ran_here, from_children);
    if (ran_here) return std::move(*own);
    if constexpr (detail::kHoldsValue<Result>)
      return detail::from_value<Result>(from_children);
    else
      throw MisuseError(
          "the function ran in other processes, which hand back only what a fabric::Value holds: numbers, strings, "
          "tensors, lists and maps of them");
  }
}

template <class M, class... Rest>
auto Fabric::setup(M&& module, Rest&&... rest) {
  SetupOptions options;
  (
      [&] {
        if constexpr (detail::IsOptions<Rest>::value) options = rest;
      }(),
      ...);
  if constexpr (IsWrapped<std::decay_t<M>>::value) {
    throw MisuseError("this module is set up already: use the one that setup returned, and set it up only once");
    return std::forward<M>(module);
  } else {
    auto impl = detail::share_module(std::forward<M>(module));
    using Wrapped = FabricModule<typename decltype(impl)::element_type>;
    (detail::require_optimizer(rest), ...);
    std::vector<OptimizerSource> sources;
    (
        [&] {
          if constexpr (!detail::IsOptions<Rest>::value)
            sources.push_back(detail::optimizer_source(std::forward<Rest>(rest)));
        }(),
        ...);
    SetUp done = set_up(impl, sources, options);
    after_setup(*impl);
    constexpr std::size_t kCount = (0 + ... + (detail::IsOptions<Rest>::value ? 0 : 1));
    if constexpr (kCount == 0) {
      return Wrapped(impl, done.module);
    } else {
      return [&]<std::size_t... I>(std::index_sequence<I...>) {
        return std::make_tuple(Wrapped(impl, done.module), wrap_optimizer(done.optimizers[I])...);
      }
      (std::make_index_sequence<kCount>());
    }
  }
}

template <class M>
auto Fabric::setup_module(M&& module, SetupOptions options) {
  if constexpr (IsWrapped<std::decay_t<M>>::value) {
    throw MisuseError("this module is set up already: use the one that setup returned, and set it up only once");
    return std::forward<M>(module);
  } else {
    auto impl = detail::share_module(std::forward<M>(module));
    return FabricModule<typename decltype(impl)::element_type>(impl, set_up(impl, {}, options).module);
  }
}

template <class... Optimizers>
auto Fabric::setup_optimizers(Optimizers&&... optimizers) {
  static_assert(sizeof...(Optimizers) > 0, "setup_optimizers needs at least one optimizer");
  if constexpr (sizeof...(Optimizers) == 1)
    return (set_up_optimizer(detail::optimizer_source(std::forward<Optimizers>(optimizers))), ...);
  else
    return std::make_tuple(set_up_optimizer(detail::optimizer_source(std::forward<Optimizers>(optimizers)))...);
}

template <class Dataset>
auto Fabric::setup_dataloader(Dataset&& dataset, DataLoaderOptions options) {
  require_launched("setup_dataloader");
  return make_dataloader(std::forward<Dataset>(dataset), std::move(options), loader_context());
}

template <class T>
T Fabric::to_device(T object) const {
  if constexpr (detail::ModuleTraits<T>::kIsModule && !std::is_base_of_v<torch::nn::Module, T>) {
    strategy()->module_to_device(*detail::ModuleTraits<T>::share(object));
  } else {
    bool any = false;
    bool seen_all = for_each_tensor(object, [&](at::Tensor& tensor) {
      any = true;
      tensor = strategy()->batch_to_device(tensor);
    });
    if (!seen_all && !any)
      throw MisuseError(
          "to_device was given a type whose tensors it does not know. Add FABRIC_TENSORS(Type, member, …) to the type, "
          "naming the members that hold tensors");
  }
  return object;
}

template <class... Items>
void Fabric::print(const Items&... items) const {
  if (local_rank() != 0) return;
  std::ostringstream line;
  (line << ... << items);
  print_line(line.str());
}

template <class Range, class... Label>
auto Fabric::progress(Range&& range, const Label&... label) const {
  std::ostringstream text;
  (text << ... << label);
  return fabric::progress(std::forward<Range>(range), text.str(), is_global_zero());
}

}  // namespace fabric
