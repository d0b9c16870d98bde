#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <fabric/base/error.h>
#include <fabric/config.h>
#include <fabric/data/sampler_options.h>
#include <fabric/data/worker_info.h>
#include <fabric/state/state.h>
#include <fabric/state/tensors.h>

namespace fabric {

/// How a DataLoader batches, orders and fetches.
struct DataLoaderOptions {
  std::size_t batch_size = 1;
  /// A new order each epoch, the same on all ranks and for every number of ranks.
  bool shuffle = false;
  /// Excludes `shuffle`.
  SamplerOption sampler = {};
  /// A ready-made one excludes `sampler`, `batch_size`, `shuffle` and `drop_last`.
  BatchSamplerOption batch_sampler = {};
  /// Leaves out a last batch that is not full. Batches that a stream makes itself come as it makes them.
  bool drop_last = false;
  /// Threads that read samples; 0: the calling thread does. See fabric/docs/data.md for what the dataset must allow.
  int workers = 0;
  /// Batches that each worker makes ahead.
  int prefetch = 2;
  /// Off: workers' batches come as they are ready, so one slow batch holds up nothing.
  bool in_order = true;
  /// Puts batches into page-locked memory, from which copies to a device run beside other work; moved by us or not.
  bool pin_memory = false;
  /// Off: the sampler is used as it is, on every rank.
  bool use_distributed_sampler = true;
  bool move_to_device = true;
  /// Empty: what seed_everything set, else 0.
  std::optional<std::uint64_t> seed = {};
  /// Seconds to wait for a batch from a worker before that is an error; 0: no limit. Leaving a loop waits at most as
  /// long, and never longer than a minute, for a sample that is being read.
  double timeout = 1800;
  FABRIC_FIELDS(DataLoaderOptions, batch_size, shuffle, drop_last, workers, prefetch, in_order, pin_memory,
                use_distributed_sampler, move_to_device, seed, timeout)
  /// Throws ConfigError for numbers out of range and options that exclude each other.
  FABRIC_API void validate() const;
};

/// What a loader has to know about its place; Fabric fills it in.
struct LoaderContext {
  /// Empty: samples are not shared out.
  std::optional<SamplerShard> shard = {};
  int rank = 0;
  /// Where batches go; empty: they stay where the dataset puts them.
  std::optional<c10::Device> device = {};
  /// How they get there; empty: `Tensor::to`, non-blocking except to the CPU.
  std::function<at::Tensor(const at::Tensor&)> to_device = {};
  /// What seed_everything set; empty: it is asked when the loader is set up.
  std::optional<std::uint64_t> seed = {};
  /// Every rank's value, by rank, where loaders are set up on all ranks together; empty: nobody is asked.
  std::function<std::vector<Value>(const Value&)> exchange = {};
};

namespace detail {

/// The part of a loader that does not depend on the type of its batches: which samples come when, and how far it got.
class FABRIC_API LoaderCore : public Stateful {
 public:
  LoaderCore(DataLoaderOptions options, bool is_stream, std::optional<std::size_t> dataset_size);
  /// Takes its place in the job. Throws MisuseError the second time.
  void set_up(LoaderContext context, bool shards = true, bool moves = true);
  const DataLoaderOptions& options() const { return options_; }
  std::optional<c10::Device> device() const;
  bool is_stream() const { return is_stream_; }
  const std::shared_ptr<IndexSampler>& sampler() const { return sampler_; }
  const std::shared_ptr<BatchSampler>& batch_sampler() const { return batch_sampler_; }
  /// Batches per epoch on this rank, where that is known.
  std::optional<std::size_t> size() const;
  std::int64_t epoch() const { return epoch_; }
  void set_epoch(std::int64_t epoch);

  // --- one iteration
  /// Starts the next epoch, or goes on in a restored one. The number identifies the iteration.
  std::uint64_t begin();
  /// Takes `begin` back: the next one starts at the same place.
  void begin_failed();
  /// Throws MisuseError when another iteration began since.
  void check_current(std::uint64_t iteration) const;
  /// The first batch that is still to be made.
  std::size_t first_batch() const { return consumed_; }
  /// True for a batch that was used before the state was saved.
  bool is_consumed(std::size_t batch) const;
  /// The indices of the next batch: a view, into `buffer` if need be. False at the end.
  bool next_indices(std::vector<std::size_t>& buffer, c10::ArrayRef<std::size_t>& indices);
  void consumed(std::size_t batch, c10::ArrayRef<std::size_t> indices);
  void end(std::uint64_t iteration, bool complete);
  /// How many samples at the end of the batch that was handed out last stand there a second time, so that all ranks
  /// have as many. Throws MisuseError before the first batch, and where a batch sampler of the user's own hides it.
  std::size_t repeated_samples() const;
  /// Samples in that batch; 0 where a stream made it.
  std::size_t last_batch_size() const { return last_batch_ ? last_batch_->samples : 0; }
  SeedBase seeds() const { return {worker_base_, context_ ? context_->rank : 0}; }

  /// Moves one tensor of a batch to the device.
  void place(at::Tensor& tensor) const;
  bool moves() const { return moves_; }
  bool pins() const { return pins_; }
  void warn_opaque(const char* type_name) const;

  Value state_dict() const override;
  void load_state_dict(const Value& state) override;
  /// Where samples are not shared out, each rank's sampler may have an order of its own.
  bool per_rank() const override;

 private:
  void choose_samplers();
  void agree_with_ranks();
  void compare_order_over_ranks();
  std::size_t repeated_in(std::size_t batch) const;
  std::shared_ptr<IndexSampler> shard_sampler(const std::shared_ptr<IndexSampler>& given);
  void begin_samplers(bool resuming);
  Value sampler_state() const;
  void restore_sampler(const Value& state);
  bool draw_indices(std::vector<std::size_t>& buffer, c10::ArrayRef<std::size_t>& indices);
  void move_to_epoch(std::int64_t epoch);
  void check_indices(c10::ArrayRef<std::size_t> indices) const;
  void restore_position(const Value& state);
  bool is_sharded() const { return context_ && context_->shard && options_.use_distributed_sampler; }
  bool shares_order() const { return is_sharded() && !is_stream_ && context_->exchange && world_size() > 1; }
  std::size_t world_size() const { return is_sharded() ? static_cast<std::size_t>(context_->shard->num_replicas) : 1; }

  DataLoaderOptions options_;
  bool is_stream_;
  std::optional<std::size_t> dataset_size_;
  std::optional<LoaderContext> context_;
  std::uint64_t seed_ = 0;
  bool seeds_workers_ = true;
  bool moves_ = false;
  bool pins_ = false;
  std::shared_ptr<IndexSampler> sampler_;
  /// Set when `sampler_` is ours, over the whole dataset.
  std::shared_ptr<DistributedSampler> own_sampler_;
  /// Set when `sampler_` deals out another one's order.
  std::shared_ptr<DistributedSamplerWrapper> wrapper_;
  std::shared_ptr<BatchSampler> batch_sampler_;

  /// What tells whether a sampler without a state gave the order again in which an epoch began.
  struct OrderMark {
    /// Of the batches of this rank that are used, added up since they may be used in any order; or of the whole epoch.
    std::uint64_t hash;
    /// The rank whose batches they are; empty: the mark is the same on all ranks.
    std::optional<int> rank;
  };
  std::optional<OrderMark> draw_used_again(bool has_state);

  // --- progress
  std::int64_t epoch_ = 0;
  /// All batches before this one are used, and those of `ahead_` besides.
  std::size_t consumed_ = 0;
  std::vector<std::size_t> ahead_;
  /// Samples of the epoch that all ranks together used before it was dealt out anew.
  std::size_t skipped_samples_ = 0;
  static constexpr std::size_t kHidden = static_cast<std::size_t>(-1);
  struct LastBatch {
    std::size_t samples;
    std::size_t repeated;  // or kHidden
  };
  std::optional<LastBatch> last_batch_;
  bool resuming_ = false;
  bool iterating_ = false;
  std::optional<std::int64_t> explicit_epoch_;
  std::uint64_t iteration_ = 0;
  Value saved_sampler_state_;
  /// Until the epoch begins: that of the state which was loaded. Empty where nothing has to be compared.
  std::optional<OrderMark> order_;
  /// Batches that were drawn already.
  std::deque<std::vector<std::size_t>> drawn_ahead_;
  std::uint64_t worker_base_ = 0;
  const std::vector<std::size_t>* plan_ = nullptr;
  std::size_t cursor_ = 0;
};

/// Notices datasets whose samples take the default dtype: a precision such as 16-true changes it for the whole process
/// while the model runs, so that in a worker thread it would be a matter of timing.
class FABRIC_API DtypeWatch {
 public:
  /// The default dtype as it is now is the usual one.
  DtypeWatch();
  static c10::ScalarType default_dtype();
  /// Call it after a batch was made, with the default dtype from before. Warns once when what is made under another
  /// default dtype than the usual one has another dtype; true if it did. Any thread may call.
  template <class Batch>
  bool look(c10::ScalarType before, Batch& batch) {
    bool usual = before == usual_ && default_dtype() == usual_;
    if (usual && seen_ != c10::ScalarType::Undefined) return false;
    auto dtype = c10::ScalarType::Undefined;
    for_each_tensor(batch, [&](at::Tensor& tensor) {
      if (dtype == c10::ScalarType::Undefined && tensor.is_floating_point()) dtype = tensor.scalar_type();
    });
    if (usual) seen_ = dtype;
    return !usual && warn_if_other(dtype);
  }

 private:
  bool warn_if_other(c10::ScalarType dtype);

  c10::ScalarType usual_;
  std::atomic<c10::ScalarType> seen_ = c10::ScalarType::Undefined;
};

/// Throws a DataError that says which sample, batch and worker failed, and why.
[[noreturn]] FABRIC_API void throw_data_error(std::size_t batch, int worker, std::optional<std::size_t> index,
                                              c10::ArrayRef<std::size_t> indices, std::exception_ptr cause);
[[noreturn]] FABRIC_API void throw_worker_timeout(std::size_t batch, int worker, int rank, double seconds);
FABRIC_API at::Tensor pin(const at::Tensor& tensor);
FABRIC_API at::Tensor moved_to(const at::Tensor& tensor, c10::Device device);

}  // namespace detail
}  // namespace fabric
