#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <c10/util/ArrayRef.h>

#include <fabric/data/collate.h>
#include <fabric/data/worker_pool.h>

namespace torch::data::datasets {
template <typename Self, typename SingleExample>
class Dataset;
}

// What counts as a dataset, and how a batch is read from each kind.
namespace fabric::detail {

using Indices = c10::ArrayRef<std::size_t>;

/// Where a fetch is: read when it fails, and a way to end it between two samples.
struct FetchTrace {
  const std::atomic<bool>* stop = nullptr;
  std::optional<std::size_t> index;
};

template <class D>
concept TakesIndexRef = requires(D& dataset, Indices indices) {
  dataset.get_batch(indices);
};
template <class D>
concept TakesIndexList = requires(D& dataset, std::vector<std::size_t> indices) {
  dataset.get_batch(indices);
};
template <class D>
concept HasGet = requires(D& dataset, std::size_t index) {
  dataset.get(index);
};
template <class D>
concept HasSubscript = requires(D& dataset, std::size_t index) {
  dataset[index];
  dataset.size();
};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <class D>
concept IndexedDataset = TakesIndexRef<D> || TakesIndexList<D> || HasGet<D> || HasSubscript<D>;
/// LibTorch's stateful, chunk and stream datasets: asked for a number of samples.
template <class D>
concept BatchStream = !IndexedDataset<D> && requires(D & dataset) {
  dataset.get_batch(std::size_t{1});
};
/// A class of the user's that gives one sample after the other.
template <class D>
concept SampleStream = !IndexedDataset<D> && !BatchStream<D> && requires(D & dataset) {
  *dataset.next();
};
template <class D>
concept AnyDataset = IndexedDataset<D> || BatchStream<D> || SampleStream<D>;

template <class C, class R, class... A>
std::type_identity<C> class_of_member(R (C::*)(A...));
template <class C>
struct IsTorchBase : std::false_type {};
template <class Self, class Sample>
struct IsTorchBase<std::type_identity<torch::data::datasets::Dataset<Self, Sample>>> : std::true_type {};

/// True when `get_batch` is nothing but LibTorch's loop over `get`, which may then be called directly.
template <class D>
constexpr bool inherits_get_batch() {
  if constexpr (requires { class_of_member(&D::get_batch); })
    return IsTorchBase<decltype(class_of_member(&D::get_batch))>::value;
  else
    return false;
}

template <class D>
decltype(auto) sample_at(D& dataset, std::size_t index) {
  if constexpr (HasGet<D>)
    return dataset.get(index);
  else
    return dataset[index];
}

template <class D>
decltype(auto) batch_at(D& dataset, Indices indices) {
  if constexpr (TakesIndexRef<D>)
    return dataset.get_batch(indices);
  else
    return dataset.get_batch(indices.vec());
}

template <class T>
struct IsExampleList : std::false_type {};
template <class Data, class Target, class A>
struct IsExampleList<std::vector<torch::data::Example<Data, Target>, A>> : std::true_type {};

/// What a dataset's `get_batch` gave, collated when it is a list of samples and not a batch of the dataset's own
/// making.
template <class D, class Given>
auto collate_given(D& dataset, Given given) {
  if constexpr (requires { dataset.collate(std::move(given)); }) {
    return dataset.collate(std::move(given));
  } else if constexpr (IsExampleList<Given>::value) {
    return collate(std::move(given));
  } else if constexpr (HasGet<D>) {
    using Sample = std::remove_cvref_t<decltype(dataset.get(std::size_t{0}))>;
    if constexpr (std::is_same_v<Given, std::vector<Sample>>)
      return collate(std::move(given));
    else
      return given;
  } else {
    return given;
  }
}

template <class D>
auto collate_samples(D& dataset, auto samples) {
  if constexpr (requires { dataset.collate(std::move(samples)); })
    return dataset.collate(std::move(samples));
  else
    return collate(std::move(samples));
}

template <class D>
auto fetch_batch(D& dataset, Indices indices, FetchTrace& trace) {
  if constexpr ((TakesIndexRef<D> || TakesIndexList<D>)&&!(HasGet<D> && inherits_get_batch<D>())) {
    return collate_given(dataset, batch_at(dataset, indices));
  } else {
    std::vector<std::remove_cvref_t<decltype(sample_at(dataset, 0))>> samples;
    samples.reserve(indices.size());
    for (std::size_t index : indices) {
      if (trace.stop && trace.stop->load(std::memory_order_relaxed)) throw Stopped{};
      trace.index = index;
      samples.push_back(sample_at(dataset, index));
    }
    trace.index.reset();
    return collate_samples(dataset, std::move(samples));
  }
}

/// What `size()` says; nothing where there is none.
template <class D>
std::optional<std::size_t> dataset_size(D& dataset) {
  if constexpr (requires { std::optional<std::size_t>(dataset.size()); })
    return dataset.size();
  else
    return std::nullopt;
}

}  // namespace fabric::detail
