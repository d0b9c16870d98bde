#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <c10/util/ArrayRef.h>

#include <fabric/data/collate.h>
#include <fabric/data/worker_pool.h>

namespace fabric::detail {

using Indices = c10::ArrayRef<std::size_t>;

/// Where a fetch is: read when it fails, and a way to end it between two samples.
struct FetchTrace {
  const std::atomic<bool>* stop = nullptr;
  std::optional<std::size_t> index;
};

/// A dataset of any kind as what makes batches.
template <class Batch>
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  /// The batch of these samples; of an indexed dataset only.
  virtual Batch fetch(Indices indices, FetchTrace& trace) = 0;
  /// The next batch of a stream, nothing at its end.
  virtual std::optional<Batch> next(std::size_t batch_size, bool drop_last, FetchTrace& trace) = 0;
  virtual void reset() = 0;
  /// For another thread: a copy of the dataset where it was given by value, the same one where it was shared or is a
  /// stream.
  virtual std::unique_ptr<BatchSource> for_worker() const = 0;
  virtual const std::type_info& type() const = 0;
  virtual void* dataset() = 0;
};

template <class D>
concept TakesIndexRef = requires(D& dataset, Indices indices) { dataset.get_batch(indices); };
template <class D>
concept TakesIndexList = requires(D& dataset, std::vector<std::size_t> indices) { dataset.get_batch(indices); };
template <class D>
concept HasGet = requires(D& dataset, std::size_t index) { dataset.get(index); };
template <class D>
concept HasSubscript = requires(D& dataset, std::size_t index) { dataset[index]; dataset.size(); };
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <class D>
concept IndexedDataset = TakesIndexRef<D> || TakesIndexList<D> || HasGet<D> || HasSubscript<D>;
/// LibTorch's stateful, chunk and stream datasets: asked for a number of samples.
template <class D>
concept BatchStream = !IndexedDataset<D> && requires(D& dataset) { dataset.get_batch(std::size_t{1}); };
/// A class of the user's that gives one sample after the other.
template <class D>
concept SampleStream = !IndexedDataset<D> && !BatchStream<D> && requires(D& dataset) { *dataset.next(); };
template <class D>
concept AnyDataset = IndexedDataset<D> || BatchStream<D> || SampleStream<D>;

template <class C, class R, class... A>
std::type_identity<C> class_of_member(R (C::*)(A...));

/// True when `get_batch` is nothing but LibTorch's loop over `get`, which may then be called directly.
template <class D>
constexpr bool inherits_get_batch() {
  if constexpr (requires { class_of_member(&D::get_batch); })
    return !std::is_same_v<decltype(class_of_member(&D::get_batch)), std::type_identity<D>>;
  else
    return false;
}

template <class D>
decltype(auto) sample_at(D& dataset, std::size_t index) {
  if constexpr (HasGet<D>) return dataset.get(index);
  else return dataset[index];
}

template <class D>
decltype(auto) batch_at(D& dataset, Indices indices) {
  if constexpr (TakesIndexRef<D>) return dataset.get_batch(indices);
  else return dataset.get_batch(indices.vec());
}

template <class T>
struct IsExampleList : std::false_type {};
template <class Data, class Target, class A>
struct IsExampleList<std::vector<torch::data::Example<Data, Target>, A>> : std::true_type {};

/// What a dataset's `get_batch` gave, collated when it is a list of samples and not a batch of the dataset's own making.
template <class D, class Given>
auto collate_given(D& dataset, Given given) {
  if constexpr (requires { dataset.collate(std::move(given)); }) {
    return dataset.collate(std::move(given));
  } else if constexpr (IsExampleList<Given>::value) {
    return collate(std::move(given));
  } else if constexpr (HasGet<D>) {
    using Sample = std::remove_cvref_t<decltype(dataset.get(std::size_t{0}))>;
    if constexpr (std::is_same_v<Given, std::vector<Sample>>) return collate(std::move(given));
    else return given;
  } else {
    return given;
  }
}

template <class D>
auto collate_samples(D& dataset, auto samples) {
  if constexpr (requires { dataset.collate(std::move(samples)); }) return dataset.collate(std::move(samples));
  else return collate(std::move(samples));
}

template <class D>
auto fetch_batch(D& dataset, Indices indices, FetchTrace& trace) {
  if constexpr ((TakesIndexRef<D> || TakesIndexList<D>) && !(HasGet<D> && inherits_get_batch<D>())) {
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

/// Reads batches of a stream until it or its `size()`, where it has one, ends.
template <class D>
class StreamReader {
 public:
  auto next(D& dataset, std::size_t batch_size, bool drop_last, FetchTrace& trace) {
    if constexpr (BatchStream<D>) return next_batch(dataset, batch_size, drop_last);
    else return next_samples(dataset, batch_size, drop_last, trace);
  }
  void reset(D& dataset) {
    taken_ = 0;
    if constexpr (requires { dataset.reset(); }) dataset.reset();
  }

 private:
  auto next_batch(D& dataset, std::size_t batch_size, bool drop_last) {
    using Given = std::remove_cvref_t<decltype(dataset.get_batch(batch_size))>;
    if constexpr (IsOptional<Given>::value) {
      using Batch = decltype(collate_given(dataset, std::move(*dataset.get_batch(batch_size))));
      Given given = dataset.get_batch(batch_size);
      return given ? std::optional<Batch>(collate_given(dataset, std::move(*given))) : std::nullopt;
    } else {
      using Batch = decltype(collate_given(dataset, dataset.get_batch(batch_size)));
      std::size_t want = batch_size;
      if constexpr (requires { std::optional<std::size_t>(dataset.size()); }) {
        std::optional<std::size_t> size = dataset.size();
        if (size) want = std::min(want, *size - std::min(*size, taken_));
      }
      if (want == 0 || (drop_last && want < batch_size)) return std::optional<Batch>();
      taken_ += want;
      return std::optional<Batch>(collate_given(dataset, dataset.get_batch(want)));
    }
  }
  auto next_samples(D& dataset, std::size_t batch_size, bool drop_last, FetchTrace& trace) {
    std::vector<std::remove_cvref_t<decltype(*dataset.next())>> samples;
    using Batch = decltype(collate_samples(dataset, std::move(samples)));
    samples.reserve(batch_size);
    while (samples.size() < batch_size) {
      if (trace.stop && trace.stop->load(std::memory_order_relaxed)) throw Stopped{};
      trace.index = taken_;
      auto sample = dataset.next();
      if (!sample) break;
      ++taken_;
      samples.push_back(std::move(*sample));
    }
    trace.index.reset();
    if (samples.empty() || (drop_last && samples.size() < batch_size)) return std::optional<Batch>();
    return std::optional<Batch>(collate_samples(dataset, std::move(samples)));
  }

  std::size_t taken_ = 0;
};

template <class D>
auto batch_of(D& dataset, FetchTrace& trace) {
  if constexpr (IndexedDataset<D>) return fetch_batch(dataset, Indices(), trace);
  else return *StreamReader<D>().next(dataset, 1, false, trace);
}
template <class D>
using BatchOf = decltype(batch_of(std::declval<D&>(), std::declval<FetchTrace&>()));

template <class D>
class DatasetSource final : public BatchSource<BatchOf<D>> {
 public:
  using Batch = BatchOf<D>;
  DatasetSource(std::shared_ptr<D> dataset, bool shared) : dataset_(std::move(dataset)), shared_(shared) {}

  Batch fetch(Indices indices, FetchTrace& trace) override {
    if constexpr (IndexedDataset<D>) return fetch_batch(*dataset_, indices, trace);
    else throw MisuseError("a stream has no indices");
  }
  std::optional<Batch> next(std::size_t batch_size, bool drop_last, FetchTrace& trace) override {
    if constexpr (IndexedDataset<D>) throw MisuseError("an indexed dataset is no stream");
    else return reader_.next(*dataset_, batch_size, drop_last, trace);
  }
  void reset() override {
    if constexpr (!IndexedDataset<D>) reader_.reset(*dataset_);
  }
  std::unique_ptr<BatchSource<Batch>> for_worker() const override {
    if constexpr (std::is_copy_constructible_v<D> && IndexedDataset<D>) {
      if (!shared_) return std::make_unique<DatasetSource>(std::make_shared<D>(*dataset_), false);
    }
    return std::make_unique<DatasetSource>(dataset_, true);
  }
  const std::type_info& type() const override { return typeid(D); }
  void* dataset() override { return dataset_.get(); }

 private:
  struct NoReader {};
  std::shared_ptr<D> dataset_;
  bool shared_;
  [[no_unique_address]] std::conditional_t<IndexedDataset<D>, NoReader, StreamReader<D>> reader_;
};

/// What `size()` says; nothing where there is none.
template <class D>
std::optional<std::size_t> dataset_size(D& dataset) {
  if constexpr (requires { std::optional<std::size_t>(dataset.size()); }) return dataset.size();
  else return std::nullopt;
}

}  // namespace fabric::detail
