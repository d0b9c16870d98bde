#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/data/dataset.h>

namespace fabric::detail {

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

/// Reads batches of a stream until it or its `size()`, where it has one, ends.
template <class D>
class StreamReader {
 public:
  auto next(D& dataset, std::size_t batch_size, bool drop_last, FetchTrace& trace) {
    if constexpr (BatchStream<D>)
      return next_batch(dataset, batch_size, drop_last);
    else
      return next_samples(dataset, batch_size, drop_last, trace);
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
  if constexpr (IndexedDataset<D>)
    return fetch_batch(dataset, Indices(), trace);
  else
    return *StreamReader<D>().next(dataset, 1, false, trace);
}
template <class D>
using BatchOf = decltype(batch_of(std::declval<D&>(), std::declval<FetchTrace&>()));

template <class D>
class DatasetSource final : public BatchSource<BatchOf<D>> {
 public:
  using Batch = BatchOf<D>;
  DatasetSource(std::shared_ptr<D> dataset, bool shared) : dataset_(std::move(dataset)), shared_(shared) {}

  Batch fetch(Indices indices, FetchTrace& trace) override {
    if constexpr (IndexedDataset<D>)
      return fetch_batch(*dataset_, indices, trace);
    else
      throw MisuseError("a stream has no indices");
  }
  std::optional<Batch> next(std::size_t batch_size, bool drop_last, FetchTrace& trace) override {
    if constexpr (IndexedDataset<D>)
      throw MisuseError("an indexed dataset is no stream");
    else
      return reader_.next(*dataset_, batch_size, drop_last, trace);
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

}  // namespace fabric::detail
