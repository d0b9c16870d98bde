#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/error.h>
#include <fabric/base/value.h>
#include <fabric/state/tensors.h>

namespace torch::data {
template <typename Data, typename Target>
struct Example;
}

namespace fabric {

namespace detail {

/// One tensor with a new first dimension; throws Error naming the shapes when they differ.
FABRIC_API at::Tensor stack_samples(const std::vector<at::Tensor>& samples);
FABRIC_API at::Tensor tensor_of(const std::vector<std::int64_t>& numbers);
FABRIC_API at::Tensor tensor_of(const std::vector<double>& numbers);
FABRIC_API at::Tensor tensor_of(const std::vector<float>& numbers);
FABRIC_API at::Tensor tensor_of(const std::vector<bool>& numbers);
FABRIC_API Value collate_values(const std::vector<Value>& samples);
[[noreturn]] FABRIC_API void throw_uneven_samples(const std::string& what);

template <class T>
concept CollatesItself = requires(std::vector<T> items) {
  T::collate(std::move(items));
};
template <class T>
concept ListsTensors = requires(T& object, void (*visit)(at::Tensor&)) {
  object.fabric_tensors(visit);
};

template <class T, class At>
std::vector<T> gather_samples(std::size_t n, At& at) {
  std::vector<T> all;
  all.reserve(n);
  for (std::size_t i = 0; i < n; ++i) all.push_back(std::move(at(i)));
  return all;
}

/// A struct whose listed tensors are stacked; what it does not list is the first sample's.
template <class T, class At>
T stack_members(std::size_t n, At& at) {
  std::vector<at::Tensor*> leaves;
  std::size_t members = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for_each_tensor(at(i), [&](at::Tensor& tensor) { leaves.push_back(&tensor); });
    if (i == 0) members = leaves.size();
    if (leaves.size() != members * (i + 1)) throw_uneven_samples("hold different numbers of tensors");
  }
  std::vector<at::Tensor> parts(n);
  for (std::size_t member = 0; member < members; ++member) {
    for (std::size_t i = 0; i < n; ++i) parts[i] = std::move(*leaves[i * members + member]);
    *leaves[member] = stack_samples(parts);
  }
  return std::move(at(0));
}

/// How samples of type T become a batch. `at(i)` is the i-th of `n` samples, which may be moved from.
template <class T>
struct Collate {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    if constexpr (CollatesItself<T>) {
      return T::collate(gather_samples<T>(n, at));
    } else if constexpr (ListsTensors<T>) {
      return stack_members<T>(n, at);
    } else if constexpr (std::same_as<T, bool> || std::same_as<T, float> || std::same_as<T, double>) {
      return tensor_of(gather_samples<T>(n, at));
    } else if constexpr (std::integral<T>) {
      std::vector<std::int64_t> numbers(n);
      for (std::size_t i = 0; i < n; ++i) numbers[i] = static_cast<std::int64_t>(at(i));
      return tensor_of(numbers);
    } else {
      return gather_samples<T>(n, at);
    }
  }
};
template <class T, class At>
auto collate_parts(std::size_t n, At&& at) {
  return Collate<T>::run(n, at);
}
template <class T>
using Collated = decltype(collate_parts<T>(0, std::declval<T& (&)(std::size_t)>()));

template <>
struct Collate<at::Tensor> {
  template <class At>
  static at::Tensor run(std::size_t n, At&& at) {
    return stack_samples(gather_samples<at::Tensor>(n, at));
  }
};
template <>
struct Collate<Value> {
  template <class At>
  static Value run(std::size_t n, At&& at) {
    return collate_values(gather_samples<Value>(n, at));
  }
};
template <class Data, class Target>
struct Collate<torch::data::Example<Data, Target>> {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    auto data = collate_parts<Data>(n, [&](std::size_t i) -> Data& { return at(i).data; });
    if constexpr (std::is_void_v<Target>) {
      return torch::data::Example<decltype(data), void>(std::move(data));
    } else {
      auto target = collate_parts<Target>(n, [&](std::size_t i) -> Target& { return at(i).target; });
      return torch::data::Example<decltype(data), decltype(target)>(std::move(data), std::move(target));
    }
  }
};
template <class A, class B>
struct Collate<std::pair<A, B>> {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    return std::pair{collate_parts<A>(n, [&](std::size_t i) -> A& { return at(i).first; }),
                     collate_parts<B>(n, [&](std::size_t i) -> B& { return at(i).second; })};
  }
};
template <class... T>
struct Collate<std::tuple<T...>> {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return std::tuple{collate_parts<T>(n, [&](std::size_t i) -> T& { return std::get<I>(at(i)); })...};
    }
    (std::index_sequence_for<T...>());
  }
};
template <class T, std::size_t N>
struct Collate<std::array<T, N>> {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{collate_parts<T>(n, [&](std::size_t i) -> T& { return at(i)[I]; })...};
    }
    (std::make_index_sequence<N>());
  }
};
template <class T, class A>
struct Collate<std::vector<T, A>> {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    std::vector<Collated<T>> columns;
    std::size_t length = at(0).size();
    for (std::size_t i = 1; i < n; ++i)
      if (at(i).size() != length) throw_uneven_samples("are lists of unequal length");
    columns.reserve(length);
    for (std::size_t k = 0; k < length; ++k)
      columns.push_back(collate_parts<T>(n, [&](std::size_t i) -> T& { return at(i)[k]; }));
    return columns;
  }
};
template <class A>
struct Collate<std::vector<bool, A>> {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    return gather_samples<std::vector<bool, A>>(n, at);
  }
};
template <template <class...> class M, class K, class V, class... Rest>
struct CollateMap {
  template <class At>
  static auto run(std::size_t n, At&& at) {
    M<K, Collated<V>> batch;
    for (std::size_t i = 1; i < n; ++i)
      if (at(i).size() != at(0).size()) throw_uneven_samples("are maps with different keys");
    for (auto& [key, value] : at(0))
      batch.emplace(key, collate_parts<V>(n, [&, &key = key](std::size_t i) -> V& {
                      auto found = at(i).find(key);
                      if (found == at(i).end()) throw_uneven_samples("are maps with different keys");
                      return found->second;
                    }));
    return batch;
  }
};
template <class K, class V, class... R>
struct Collate<std::map<K, V, R...>> : CollateMap<std::map, K, V, R...> {};
template <class K, class V, class... R>
struct Collate<std::unordered_map<K, V, R...>> : CollateMap<std::unordered_map, K, V, R...> {};

}  // namespace detail

/// A batch out of samples. Tensors are stacked along a new first dimension; integers become an int64 tensor, floats,
/// doubles and bools one of their kind; Examples, pairs, tuples, arrays, lists of equal length, maps with equal keys
/// and Values are taken apart and put together again around such tensors; a struct with FABRIC_TENSORS keeps its type
/// with its listed tensors stacked; a type with a static `collate(std::vector<T>)` decides itself. Anything else stays
/// a std::vector of samples. `samples` must not be empty.
template <class T>
auto collate(std::vector<T> samples) {
  if constexpr (detail::CollatesItself<T>)
    return T::collate(std::move(samples));
  else
    return detail::collate_parts<T>(samples.size(),
                                    [&](std::size_t i) -> typename std::vector<T>::reference { return samples[i]; });
}

}  // namespace fabric
