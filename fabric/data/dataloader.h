#pragma once

#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include <fabric/base/env_reader.h>
#include <fabric/data/collate.h>
#include <fabric/data/iteration.h>
#include <fabric/data/loader_core.h>
#include <fabric/data/sampler.h>
#include <fabric/data/source.h>
#include <fabric/data/worker_info.h>

namespace fabric {

/// Batches out of a dataset, epoch after epoch: for (auto& batch : loader) … A handle: copies share the loader.
/// Each `begin()` is the next epoch, which starts when its first batch is asked for. One iteration at a time: starting
/// another makes the older one's next step a MisuseError. Not thread-safe: one thread iterates.
template <class Batch>
class DataLoader {
 public:
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;
    using pointer = Batch*;
    using reference = Batch&;

    Iterator() = default;
    explicit Iterator(std::shared_ptr<detail::Iteration<Batch>> iteration) : iteration_(std::move(iteration)) {}
    /// Valid until the next step; it may be moved from.
    Batch& operator*() const { return iteration_->current(); }
    Batch* operator->() const { return &iteration_->current(); }
    Iterator& operator++() {
      iteration_->step();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(const Iterator& other) const { return at_end() == other.at_end(); }

   private:
    bool at_end() const { return !iteration_ || iteration_->ended(); }
    std::shared_ptr<detail::Iteration<Batch>> iteration_;
  };

  explicit DataLoader(std::shared_ptr<detail::TypedCore<Batch>> core) : core_(std::move(core)) {}

  Iterator begin() const { return Iterator(std::make_shared<detail::Iteration<Batch>>(core_)); }
  Iterator end() const { return Iterator(); }

  /// Batches per epoch on this rank. Throws MisuseError where nobody knows: for streams and samplers without a size.
  std::size_t size() const {
    if (auto size = core_->size()) return *size;
    throw MisuseError("this loader has no size: its dataset is a stream or its sampler has none; see has_size()");
  }
  bool has_size() const { return core_->size().has_value(); }
  /// The epoch that is running or comes next; counts from 0.
  std::int64_t epoch() const { return core_->epoch(); }
  /// Makes the next iteration this epoch; later ones count on from it. Not needed for counting 0, 1, 2 …
  void set_epoch(std::int64_t epoch) const { core_->set_epoch(epoch); }
  /// How many samples at the end of the batch that was handed out last are there a second time, so that all ranks have
  /// as many; Fabric::gather_for_metrics and the metrics of fabric/helpers leave them out. Throws MisuseError before
  /// the first batch.
  std::size_t repeated_samples() const { return core_->repeated_samples(); }
  /// Where batches are moved to; empty when they are not.
  std::optional<c10::Device> device() const { return core_->device(); }
  const DataLoaderOptions& options() const { return core_->options(); }
  /// What gives this rank's indices; null for a stream, and for a batch sampler that needs none.
  const std::shared_ptr<IndexSampler>& sampler() const { return core_->sampler(); }
  const std::shared_ptr<BatchSampler>& batch_sampler() const { return core_->batch_sampler(); }
  /// The dataset, by its type: loader.dataset<Digits>(). Throws MisuseError for another type.
  template <class Dataset>
  Dataset& dataset() const {
    if (core_->source().type() != typeid(Dataset)) throw MisuseError("the loader's dataset is of another type");
    return *static_cast<Dataset*>(core_->dataset());
  }

  /// How far the loader got: batches that were handed out count, batches made ahead do not. The same on all ranks.
  Value state_dict() const { return core_->state_dict(); }
  /// Goes on where the state was saved: the next iteration gives exactly the batches that were left, in the same order.
  /// With another number of ranks or batch size the samples that are left are dealt out anew, each once. Throws
  /// MisuseError when the dataset's size or `shuffle` changed in the middle of an epoch; so does the next iteration
  /// when a sampler without a state gives another order than before.
  void load_state_dict(const Value& state) const { core_->load_state_dict(state); }
  detail::TypedCore<Batch>& core() const { return *core_; }

 private:
  std::shared_ptr<detail::TypedCore<Batch>> core_;
};

namespace detail {

template <class T>
struct SharedDataset {
  using Type = T;
  template <class D>
  static std::shared_ptr<T> share(D&& dataset) {
    return std::make_shared<T>(std::forward<D>(dataset));
  }
  static constexpr bool kShared = !std::is_copy_constructible_v<T>;
};
template <class T>
struct SharedDataset<std::shared_ptr<T>> {
  using Type = T;
  static std::shared_ptr<T> share(std::shared_ptr<T> dataset) { return dataset; }
  static constexpr bool kShared = true;
};

/// LibTorch's own loaders, and pointers to them, which torch::data::make_data_loader returns.
template <class T>
concept TorchLoader = requires(T& loader) {
  typename T::BatchType;
  typename T::BatchRequestType;
  loader.join();
  loader.begin();
};
template <class T>
concept TorchLoaderPointer = requires {
  typename T::element_type;
}
&&TorchLoader<typename T::element_type>;

template <class T>
struct IsLoader : std::false_type {};
template <class Batch>
struct IsLoader<DataLoader<Batch>> : std::true_type {};

FABRIC_API void check_only_placement(const DataLoaderOptions& options);

}  // namespace detail

/// A loader over a dataset: one of LibTorch's (with `get`, with `get_batch`, mapped, stateful, stream), a class with
/// `get(i)` and `size()`, a vector, or a class with `next()` that returns optional samples. A std::shared_ptr to one is
/// shared, anything else is taken over or copied. Samples become batches by `fabric::collate`, or by the dataset's own
/// `collate(std::vector<Sample>)`; batches that the dataset made itself stay as they are.
/// Throws ConfigError for wrong options.
template <class Dataset>
auto make_dataloader(Dataset&& dataset, DataLoaderOptions options = {}) {
  using Plain = std::remove_cvref_t<Dataset>;
  if constexpr (detail::IsLoader<Plain>::value) {
    detail::check_only_placement(options);
    return Plain(std::forward<Dataset>(dataset));
  } else if constexpr (detail::TorchLoader<Plain> || detail::TorchLoaderPointer<Plain>) {
    static_assert(!detail::TorchLoader<Plain> && !detail::TorchLoaderPointer<Plain>,
                  "setup_dataloader takes the dataset and makes the loader itself: instead of a loader of LibTorch's "
                  "write fabric.setup_dataloader(dataset, {.batch_size = 64, .shuffle = true})");
  } else {
    using Shared = detail::SharedDataset<Plain>;
    using Type = typename Shared::Type;
    static_assert(detail::AnyDataset<Type>,
                  "a dataset has get(size_t) and size(), get_batch(indices) and size(), get_batch(size_t), or next()");
    auto shared = Shared::share(std::forward<Dataset>(dataset));
    auto size = detail::dataset_size(*shared);
    using Batch = typename detail::DatasetSource<Type>::Batch;
    auto source = std::make_shared<detail::DatasetSource<Type>>(std::move(shared), Shared::kShared);
    return DataLoader<Batch>(std::make_shared<detail::TypedCore<Batch>>(
        std::move(options), !detail::IndexedDataset<Type>, size, std::move(source)));
  }
}

/// The same, set up for a place in a job: this is what Fabric::setup_dataloader calls. `dataset` may also be a loader
/// that is not set up yet; only `use_distributed_sampler` and `move_to_device` may then be given.
template <class Dataset>
auto make_dataloader(Dataset&& dataset, DataLoaderOptions options, LoaderContext context) {
  bool shards = options.use_distributed_sampler, moves = options.move_to_device;
  auto loader = make_dataloader(std::forward<Dataset>(dataset), std::move(options));
  if constexpr (detail::IsLoader<std::remove_cvref_t<Dataset>>::value)
    loader.core().set_up(std::move(context), shards, moves);
  else
    loader.core().set_up(std::move(context));
  return loader;
}

/// The most workers per process that make sense where `local_world_size` processes run on this machine: one less than
/// Accelerator::threads_per_rank says, at least 1. Throws ConfigError below 1.
FABRIC_API int suggested_max_num_workers(int local_world_size, const EnvReader& env = *process_env());

/// Every tensor of a nested object replaced by `move(tensor)`.
template <class T, class Move>
requires std::is_invocable_r_v<at::Tensor, Move&, const at::Tensor&> T move_data_to_device(T object, Move&& move) {
  for_each_tensor(object, [&](at::Tensor& tensor) { tensor = move(std::as_const(tensor)); });
  return object;
}
/// The same onto a device, non-blocking except to the CPU.
template <class T>
T move_data_to_device(T object, c10::Device device) {
  return move_data_to_device(std::move(object),
                             [device](const at::Tensor& tensor) { return detail::moved_to(tensor, device); });
}

template <class T>
struct IsWrapped;
template <class Batch>
struct IsWrapped<DataLoader<Batch>> : std::true_type {};

/// What `save` and `load` see of a loader.
template <class Batch>
Stateful& fabric_state_object(const DataLoader<Batch>& loader) {
  return loader.core();
}

}  // namespace fabric
