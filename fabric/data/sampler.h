#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <c10/util/ArrayRef.h>

#include <fabric/base/rank_info.h>
#include <fabric/base/value.h>

namespace fabric {

namespace detail {
/// A number that is another one for other indices, for another order of them, and for another `start`.
FABRIC_API std::uint64_t order_hash(c10::ArrayRef<std::size_t> indices, std::uint64_t start = 0);
}  // namespace detail

/// Chooses the order of samples in an epoch. Derive from it, or hand over any LibTorch sampler. A loader calls it in
/// the thread that iterates, never in its workers. With several ranks it must draw the same order on each of them: the
/// ranks then share the samples out.
class FABRIC_API IndexSampler {
 public:
  virtual ~IndexSampler() = default;
  /// Starts an epoch from its first index.
  virtual void reset() = 0;
  /// The next index, or nothing at the end of the epoch.
  virtual std::optional<std::size_t> next() = 0;
  /// How many indices an epoch has; nothing when that is not known or there is no end.
  virtual std::optional<std::size_t> size() const { return std::nullopt; }
  /// Called before the first `reset` of each epoch.
  virtual void set_epoch(std::int64_t) {}
  /// True when it gives the indices of one rank only, so that they must not be shared out again.
  virtual bool is_sharded() const { return false; }
  /// The whole epoch, in memory, where a sampler has it; read instead of calling `next`. Valid until the next reset.
  virtual const std::vector<std::size_t>* indices() { return nullptr; }
  /// What decides the next epoch's order besides its number; saved with the loader, as it was when the epoch began. A
  /// sampler without it must give an epoch the same order again: a loader that goes on in the middle of an epoch
  /// compares, and throws MisuseError for another order.
  virtual Value state_dict() const { return {}; }
  virtual void load_state_dict(const Value&) {}
};

/// The order every rank agrees on without a word: with N samples and W ranks, total = ceil(N / W) * W; the order is a
/// permutation drawn from a generator seeded with seed + epoch (PyTorch's `torch.randperm`), or 0 … N-1; it is padded
/// by repeating it from the front, and rank r takes the entries r, r + W, r + 2W …
class FABRIC_API DistributedSampler : public IndexSampler {
 public:
  struct Config {
    int num_replicas = 1;
    int rank = 0;
    bool shuffle = true;
    std::uint64_t seed = 0;
    /// Drops the tail instead of padding it.
    bool drop_last = false;
  };
  /// Throws ConfigError for a rank outside 0 … num_replicas - 1.
  DistributedSampler(std::size_t dataset_size, Config config);

  void reset() override;
  std::optional<std::size_t> next() override;
  std::optional<std::size_t> size() const override { return num_samples_; }
  void set_epoch(std::int64_t epoch) override;
  bool is_sharded() const override { return true; }
  const std::vector<std::size_t>* indices() override;
  std::int64_t epoch() const { return epoch_; }
  const Config& config() const { return config_; }
  /// How many of `size()` indices come first in the epoch; those behind them repeat other ones.
  std::size_t distinct() const;
  /// Leaves out the first `count` entries of the padded order, on all ranks together: what was consumed already.
  void skip_front(std::size_t count);
  void set_seed(std::uint64_t seed);

 private:
  void count_samples();

  std::size_t dataset_size_;
  Config config_;
  std::size_t skipped_ = 0;
  std::size_t num_samples_ = 0;
  std::int64_t epoch_ = 0;
  std::size_t cursor_ = 0;
  bool drawn_ = false;
  std::vector<std::size_t> indices_;
};

/// Shares the indices of any sampler of known size among the ranks: they are drawn afresh each epoch, then padded and
/// dealt as by DistributedSampler without shuffling.
class FABRIC_API DistributedSamplerWrapper : public IndexSampler {
 public:
  /// Throws MisuseError for a sampler without a size.
  DistributedSamplerWrapper(std::shared_ptr<IndexSampler> sampler, SamplerShard shard);

  void reset() override;
  std::optional<std::size_t> next() override;
  std::optional<std::size_t> size() const override;
  void set_epoch(std::int64_t epoch) override { sampler_->set_epoch(epoch); }
  bool is_sharded() const override { return true; }
  const std::vector<std::size_t>* indices() override;
  Value state_dict() const override { return sampler_->state_dict(); }
  void load_state_dict(const Value& state) override { sampler_->load_state_dict(state); }
  const std::shared_ptr<IndexSampler>& sampler() const { return sampler_; }
  /// As DistributedSampler's.
  std::size_t distinct() const;
  /// Of the whole epoch's order, that of all ranks; known once the indices are drawn.
  std::uint64_t order_hash() const { return order_hash_; }

 private:
  std::shared_ptr<IndexSampler> sampler_;
  SamplerShard shard_;
  std::uint64_t order_hash_ = 0;
  std::size_t cursor_ = 0;
  bool drawn_ = false;
  std::vector<std::size_t> indices_;
};

/// Chooses whole batches: buckets of similar length, say.
class FABRIC_API BatchSampler {
 public:
  virtual ~BatchSampler() = default;
  virtual void reset() = 0;
  /// Replaces `batch` by the next batch's indices; false at the end of the epoch.
  virtual bool next(std::vector<std::size_t>& batch) = 0;
  virtual std::optional<std::size_t> size() const { return std::nullopt; }
  virtual void set_epoch(std::int64_t) {}
  /// The sampler it draws single indices from, where there is one.
  virtual std::shared_ptr<IndexSampler> sampler() const { return nullptr; }
  /// Draws from `sampler` from now on, which gives this rank's share; false when it cannot.
  virtual bool set_sampler(std::shared_ptr<IndexSampler>) { return false; }
  /// As for IndexSampler. Without one here, the state of `sampler()` is saved.
  virtual Value state_dict() const { return {}; }
  virtual void load_state_dict(const Value&) {}
};

}  // namespace fabric
