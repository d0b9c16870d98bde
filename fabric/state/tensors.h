#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/value.h>
#include <fabric/config.h>

/// Says which members of a struct hold tensors, so that Fabric can move, convert and watch them:
/// struct Output { Tensor logits, loss; FABRIC_TENSORS(Output, logits, loss) };
#define FABRIC_TENSORS(Self, ...)                       \
  template <class FabricVisit>                          \
  bool fabric_tensors(FabricVisit&& fabric_visit) {     \
    bool fabric_all = true;                             \
    FABRIC_FOR_EACH_(FABRIC_TENSOR_FIELD_, __VA_ARGS__) \
    return fabric_all;                                  \
  }
#define FABRIC_TENSOR_FIELD_(field) fabric_all &= ::fabric::for_each_tensor(field, fabric_visit);

namespace fabric {

/// Calls `visit(Tensor&)` for each defined tensor inside any nesting of tensors, vectors, arrays, tuples, pairs,
/// optionals, maps, Values, `torch::data::Example`s and structs with FABRIC_TENSORS; numbers, strings and the like hold
/// none. Returns false when a type is opaque, so that tensors may have been missed.
template <class T, class Visit>
bool for_each_tensor(T& object, Visit&& visit);

namespace detail {

template <class T>
struct TensorWalk {  // types without a rule
  static constexpr bool kLeaf = std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_same_v<T, std::string> ||
                                std::is_same_v<T, std::nullptr_t> || std::is_same_v<T, const char*> ||
                                std::is_empty_v<T> || std::is_same_v<T, c10::Device> || std::is_same_v<T, c10::Scalar>;
  template <class Visit>
  static bool walk(T& object, Visit& visit) {
    if constexpr (requires { object.fabric_tensors(visit); }) {
      return object.fabric_tensors(visit);
    } else if constexpr (requires {
                           object.data;
                           object.target;
                         }) {  // torch::data::Example
      return for_each_tensor(object.data, visit) & for_each_tensor(object.target, visit);
    } else {
      return kLeaf;
    }
  }
};
template <>
struct TensorWalk<at::Tensor> {
  template <class Visit>
  static bool walk(at::Tensor& tensor, Visit& visit) {
    if (tensor.defined()) visit(tensor);
    return true;
  }
};
template <class T>
struct RangeWalk {
  template <class Visit>
  static bool walk(T& range, Visit& visit) {
    bool all = true;
    for (auto& item : range) all &= for_each_tensor(item, visit);
    return all;
  }
};
template <class T, class A>
struct TensorWalk<std::vector<T, A>> : RangeWalk<std::vector<T, A>> {};
template <class A>
struct TensorWalk<std::vector<bool, A>> {
  template <class Visit>
  static bool walk(std::vector<bool, A>&, Visit&) {
    return true;
  }
};
template <class T, std::size_t N>
struct TensorWalk<std::array<T, N>> : RangeWalk<std::array<T, N>> {};
template <class M>
struct MapWalk {
  template <class Visit>
  static bool walk(M& map, Visit& visit) {
    bool all = true;
    for (auto& [key, value] : map) all &= for_each_tensor(value, visit);
    return all;
  }
};
template <class K, class V, class... R>
struct TensorWalk<std::map<K, V, R...>> : MapWalk<std::map<K, V, R...>> {};
template <class K, class V, class... R>
struct TensorWalk<std::unordered_map<K, V, R...>> : MapWalk<std::unordered_map<K, V, R...>> {};
template <class... T>
struct TensorWalk<std::tuple<T...>> {
  template <class Visit>
  static bool walk(std::tuple<T...>& tuple, Visit& visit) {
    return std::apply([&](auto&... item) { return (for_each_tensor(item, visit) & ... & true); }, tuple);
  }
};
template <class A, class B>
struct TensorWalk<std::pair<A, B>> {
  template <class Visit>
  static bool walk(std::pair<A, B>& pair, Visit& visit) {
    return for_each_tensor(pair.first, visit) & for_each_tensor(pair.second, visit);
  }
};
template <class T>
struct TensorWalk<std::optional<T>> {
  template <class Visit>
  static bool walk(std::optional<T>& optional, Visit& visit) {
    return optional ? for_each_tensor(*optional, visit) : true;
  }
};
template <>
struct TensorWalk<Value> {
  template <class Visit>
  static bool walk(Value& value, Visit& visit) {
    for_each_leaf_tensor(value, [&](at::Tensor& tensor, const std::string&) {
      if (tensor.defined()) visit(tensor);
    });
    return true;
  }
};

}  // namespace detail

template <class T, class Visit>
bool for_each_tensor(T& object, Visit&& visit) {
  return detail::TensorWalk<std::remove_const_t<T>>::walk(const_cast<std::remove_const_t<T>&>(object), visit);
}

}  // namespace fabric
