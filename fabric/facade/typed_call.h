#pragma once
// A call of the user's module with arguments and a result of any types, as strategies see it.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>

#include <fabric/base/error.h>
#include <fabric/state/tensors.h>
#include <fabric/strategies/strategy.h>

namespace fabric::detail {

/// `forward` of whatever type, as a method to invoke.
struct Forward {
  template <class Impl, class... Args>
  decltype(auto) operator()(Impl& module, Args&... args) const {
    return module.forward(args...);
  }
};

/// An argument on its way to the model: the caller's own object where the model may change it, a copy otherwise.
template <class T>
class Argument {
 public:
  Argument(T& own) : own_(&own) {}
  template <class Given>
  requires(!std::is_same_v<std::decay_t<Given>, Argument>) Argument(Given&& given)
      : copy_(std::in_place, std::forward<Given>(given)) {}
  T& get() { return own_ ? *own_ : *copy_; }
  bool may_change() const { return own_ || stands_in_; }
  /// For another run of the model, apart from this one.
  Argument copied() const {
    Argument other(static_cast<const T&>(own_ ? *own_ : *copy_));
    other.stands_in_ = may_change();
    return other;
  }

 private:
  T* own_ = nullptr;
  std::optional<T> copy_;
  bool stands_in_ = false;
};

template <class Impl, class Method, class... Args>
class TypedCall final : public ForwardCall {
 public:
  using Raw = std::invoke_result_t<Method&, Impl&, Args&...>;
  using Result = std::conditional_t<std::is_void_v<Raw>, std::monostate, std::decay_t<Raw>>;

  TypedCall(Method method, std::tuple<Argument<Args>...> args) : method_(std::move(method)), args_(std::move(args)) {
    for_each_changeable([this](at::Tensor& tensor) { before_.push_back(tensor); });
  }
  TypedCall(const TypedCall&) = delete;
  ~TypedCall() override { put_back(); }

  void run(torch::nn::Module& target) override {
    for_each_changeable([this](at::Tensor& tensor) { given_.push_back({tensor, version_of(tensor)}); });
    auto invoke = [&](Argument<Args>&... args) -> Raw {
      return std::invoke(method_, static_cast<Impl&>(target), args.get()...);
    };
    if constexpr (std::is_void_v<Raw>) {
      std::apply(invoke, args_);
      result_.emplace();
    } else {
      result_.emplace(std::apply(invoke, args_));
    }
  }
  bool for_each_input(const Visit& visit) override {
    return std::apply([&](auto&... arg) { return (for_each_tensor(arg.get(), visit) & ... & true); }, args_);
  }
  /// The result's tensors, and those that the model put into its arguments.
  bool for_each_output(const Visit& visit) override {
    for_each_changeable([&](at::Tensor& tensor) {
      if (find_given(tensor) == given_.size()) visit(tensor);
    });
    return result_ ? for_each_tensor(*result_, visit) : true;
  }
  std::unique_ptr<ForwardCall> clone() const override {
    if constexpr ((std::is_copy_constructible_v<Args> && ... && true)) {
      return std::apply(
          [&](const auto&... arg) {
            return std::make_unique<TypedCall>(method_, std::tuple<Argument<Args>...>(arg.copied()...));
          },
          args_);
    } else {
      throw MisuseError("this strategy runs the model several times per call and needs arguments that can be copied");
    }
  }
  Result take() {
    bring_back_changes();
    return std::move(*result_);
  }

 private:
  struct Given {
    at::Tensor tensor;
    std::uint32_t version;
  };
  static std::uint32_t version_of(const at::Tensor& tensor) {
    return tensor.is_inference() ? 0 : static_cast<std::uint32_t>(tensor._version());
  }
  template <class Do>
  void for_each_changeable(Do&& action) {
    auto visit = [&](auto& arg) {
      if (arg.may_change()) for_each_tensor(arg.get(), action);
    };
    std::apply([&](auto&... arg) { (visit(arg), ...); }, args_);
  }
  std::size_t find_given(const at::Tensor& tensor) const {
    std::size_t i = 0;
    while (i < given_.size() && !tensor.is_same(given_[i].tensor)) ++i;
    return i;
  }
  // What the model changed within a tensor that had been converted or moved for it.
  void bring_back_changes() {
    at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < given_.size() && i < before_.size(); ++i) {
      const auto& given = given_[i];
      if (!given.tensor.is_same(before_[i]) && given.version != version_of(given.tensor) &&
          given.tensor.sizes() == before_[i].sizes())
        before_[i].copy_(given.tensor);
    }
  }
  // The caller's objects get back the tensors that were converted or moved in them.
  void put_back() {
    std::size_t next = 0;
    for_each_changeable([&](at::Tensor& tensor) {
      // Without a run they stand where they stood.
      std::size_t i = given_.empty() ? next++ : find_given(tensor);
      if (i < before_.size() && (given_.empty() || i < given_.size())) tensor = before_[i];
    });
  }

  Method method_;
  std::tuple<Argument<Args>...> args_;
  std::optional<Result> result_;
  // Tensors of the arguments that the model may change: the caller's, and as the model got them.
  c10::SmallVector<at::Tensor, 4> before_;
  c10::SmallVector<Given, 4> given_;
};

}  // namespace fabric::detail
