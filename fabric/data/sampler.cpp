#include <fabric/data/sampler.h>

#include <algorithm>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randperm.h>

#include <fabric/base/error.h>
#include <fabric/data/seed.h>

namespace fabric {
namespace {

void check_shard(int num_replicas, int rank) {
  if (num_replicas < 1 || rank < 0 || rank >= num_replicas)
    throw ConfigError("rank " + std::to_string(rank) + " of " + std::to_string(num_replicas) +
                      " replicas: ranks go from 0 to num_replicas - 1");
}

/// How many entries of an order without its padding fall to a rank.
std::size_t dealt_to(std::size_t rank, std::size_t count, std::size_t world) {
  return count > rank ? (count - rank + world - 1) / world : 0;
}

std::size_t ceil_divide(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

/// Entries rank, rank + world … of an order of `count` entries that repeats from its front.
template <class OrderAt>
void deal(std::vector<std::size_t>& out, std::size_t samples, std::size_t count, std::size_t world, std::size_t rank,
          OrderAt&& order_at) {
  out.resize(samples);
  std::size_t position = rank;
  for (std::size_t i = 0; i < samples; ++i, position += world)
    out[i] = order_at(position < count ? position : position % count);
}

}  // namespace

std::uint64_t detail::order_hash(c10::ArrayRef<std::size_t> indices, std::uint64_t start) {
  constexpr std::uint64_t kBasis = 0xCBF29CE484222325ull, kPrime = 0x100000001B3ull;  // FNV-1a's
  std::uint64_t hash = kBasis ^ mix_bits(start);
  for (std::size_t index : indices) hash = (hash ^ index) * kPrime;
  return mix_bits(hash + indices.size());
}

DistributedSampler::DistributedSampler(std::size_t dataset_size, Config config)
    : dataset_size_(dataset_size), config_(config) {
  check_shard(config.num_replicas, config.rank);
  count_samples();
}

void DistributedSampler::count_samples() {
  std::size_t world = static_cast<std::size_t>(config_.num_replicas);
  std::size_t left = dataset_size_ - std::min(dataset_size_, skipped_);
  num_samples_ = config_.drop_last ? left / world : ceil_divide(left, world);
}

std::size_t DistributedSampler::distinct() const {
  std::size_t left = dataset_size_ - std::min(dataset_size_, skipped_);
  auto dealt = dealt_to(static_cast<std::size_t>(config_.rank), left, static_cast<std::size_t>(config_.num_replicas));
  return std::min(dealt, num_samples_);
}

void DistributedSampler::reset() { cursor_ = 0; }

void DistributedSampler::set_epoch(std::int64_t epoch) {
  if (epoch != epoch_) drawn_ = false;
  epoch_ = epoch;
}

void DistributedSampler::set_seed(std::uint64_t seed) {
  config_.seed = seed;
  drawn_ = false;
}

void DistributedSampler::skip_front(std::size_t count) {
  if (count == skipped_) return;
  skipped_ = count;
  drawn_ = false;
  count_samples();
}

const std::vector<std::size_t>* DistributedSampler::indices() {
  if (drawn_) return &indices_;
  std::size_t world = static_cast<std::size_t>(config_.num_replicas), rank = static_cast<std::size_t>(config_.rank);
  std::size_t left = dataset_size_ - std::min(dataset_size_, skipped_);
  if (config_.shuffle && left > 0) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(config_.seed + static_cast<std::uint64_t>(epoch_));
    auto order = at::randperm(static_cast<std::int64_t>(dataset_size_), generator,
                              at::TensorOptions().dtype(at::kLong).device(at::kCPU));
    const std::int64_t* entries = order.const_data_ptr<std::int64_t>() + skipped_;
    deal(indices_, num_samples_, left, world, rank,
         [&](std::size_t i) { return static_cast<std::size_t>(entries[i]); });
  } else {
    deal(indices_, num_samples_, left, world, rank, [&](std::size_t i) { return skipped_ + i; });
  }
  drawn_ = true;
  return &indices_;
}

std::optional<std::size_t> DistributedSampler::next() {
  const auto& all = *indices();
  return cursor_ < all.size() ? std::optional(all[cursor_++]) : std::nullopt;
}

DistributedSamplerWrapper::DistributedSamplerWrapper(std::shared_ptr<IndexSampler> sampler, SamplerShard shard)
    : sampler_(std::move(sampler)), shard_(shard) {
  check_shard(shard.num_replicas, shard.rank);
  if (!sampler_->size())
    throw MisuseError("the sampler has no size, so its indices cannot be shared among " +
                      std::to_string(shard.num_replicas) +
                      " ranks. Give it a size(), write .sampler = {sampler, size} for a LibTorch sampler, or set "
                      ".use_distributed_sampler = false and let the sampler choose this rank's own indices");
}

std::optional<std::size_t> DistributedSamplerWrapper::size() const {
  return ceil_divide(sampler_->size().value_or(0), static_cast<std::size_t>(shard_.num_replicas));
}

std::size_t DistributedSamplerWrapper::distinct() const {
  return dealt_to(static_cast<std::size_t>(shard_.rank), sampler_->size().value_or(0),
                  static_cast<std::size_t>(shard_.num_replicas));
}

void DistributedSamplerWrapper::reset() {
  cursor_ = 0;
  drawn_ = false;
}

const std::vector<std::size_t>* DistributedSamplerWrapper::indices() {
  if (drawn_) return &indices_;
  std::size_t expected = sampler_->size().value_or(0);
  std::vector<std::size_t> all;
  all.reserve(expected);
  sampler_->reset();
  while (all.size() < expected) {
    auto index = sampler_->next();
    if (!index)
      throw MisuseError("the sampler's size() says " + std::to_string(expected) + " but it gave only " +
                        std::to_string(all.size()) + " indices; the ranks would get unequal shares");
    all.push_back(*index);
  }
  order_hash_ = detail::order_hash(all);
  std::size_t world = static_cast<std::size_t>(shard_.num_replicas), rank = static_cast<std::size_t>(shard_.rank);
  deal(indices_, ceil_divide(all.size(), world), all.size(), world, rank, [&](std::size_t i) { return all[i]; });
  drawn_ = true;
  return &indices_;
}

std::optional<std::size_t> DistributedSamplerWrapper::next() {
  const auto& mine = *indices();
  return cursor_ < mine.size() ? std::optional(mine[cursor_++]) : std::nullopt;
}

}  // namespace fabric
