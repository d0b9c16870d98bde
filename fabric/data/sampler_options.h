#pragma once

#include <algorithm>
#include <concepts>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <fabric/data/sampler.h>

namespace torch::data::samplers {
class RandomSampler;
class SequentialSampler;
class DistributedRandomSampler;
class DistributedSequentialSampler;
}  // namespace torch::data::samplers

namespace fabric {

namespace detail {

template <class S>
concept TorchSamplerLike = requires(S& sampler, std::optional<std::size_t> size) {
  sampler.reset(size);
  { sampler.next(std::size_t{1}) } -> std::same_as<std::optional<std::vector<std::size_t>>>;
};

/// A LibTorch sampler as one of ours. It has no state for us: what LibTorch's samplers save after a reset does not
/// bring the order of that reset back in every class.
template <TorchSamplerLike S>
class TorchSampler final : public IndexSampler {
 public:
  TorchSampler(std::shared_ptr<S> sampler, std::optional<std::size_t> size)
      : sampler_(std::move(sampler)), size_(size) {}

  void reset() override {
    sampler_->reset(std::nullopt);
    chunk_.clear();
    cursor_ = 0;
  }
  std::optional<std::size_t> next() override {
    while (cursor_ == chunk_.size()) {
      auto more = sampler_->next(kChunk);
      if (!more) return std::nullopt;
      chunk_ = std::move(*more);
      cursor_ = 0;
    }
    return chunk_[cursor_++];
  }
  std::optional<std::size_t> size() const override {
    if (size_) return size_;
    if constexpr (requires {
                    { sampler_->size() } -> std::convertible_to<std::optional<std::size_t>>;
                  })
      return sampler_->size();
    else
      return std::nullopt;
  }
  void set_epoch(std::int64_t epoch) override {
    if constexpr (requires { sampler_->set_epoch(std::size_t{0}); })
      sampler_->set_epoch(static_cast<std::size_t>(epoch));
  }
  bool is_sharded() const override {
    return std::is_same_v<S, torch::data::samplers::DistributedRandomSampler> ||
           std::is_same_v<S, torch::data::samplers::DistributedSequentialSampler>;
  }

 private:
  static constexpr std::size_t kChunk = 64;
  std::shared_ptr<S> sampler_;
  std::optional<std::size_t> size_;
  std::vector<std::size_t> chunk_;
  std::size_t cursor_ = 0;
};

/// A list of indices, in this order every epoch.
class ListSampler final : public IndexSampler {
 public:
  explicit ListSampler(std::vector<std::size_t> list) : list_(std::move(list)) {}
  void reset() override { cursor_ = 0; }
  std::optional<std::size_t> next() override {
    return cursor_ < list_.size() ? std::optional(list_[cursor_++]) : std::nullopt;
  }
  std::optional<std::size_t> size() const override { return list_.size(); }
  const std::vector<std::size_t>* indices() override { return &list_; }

 private:
  std::vector<std::size_t> list_;
  std::size_t cursor_ = 0;
};

}  // namespace detail

/// The `sampler` of a loader: an IndexSampler, a LibTorch sampler (by value or shared pointer), a list of indices, or
/// nothing. LibTorch's RandomSampler and SequentialSampler mean `shuffle` on and off.
class SamplerOption {
 public:
  SamplerOption() = default;
  SamplerOption(std::nullptr_t) {}
  SamplerOption(std::vector<std::size_t> indices)
      : sampler_(std::make_shared<detail::ListSampler>(std::move(indices))) {}
  template <std::derived_from<IndexSampler> S>
  SamplerOption(std::shared_ptr<S> sampler) : sampler_(std::move(sampler)) {}
  template <std::derived_from<IndexSampler> S>
  SamplerOption(S sampler) : sampler_(std::make_shared<S>(std::move(sampler))) {}
  /// `size`: how many indices an epoch has, for samplers without a `size()` of their own.
  template <detail::TorchSamplerLike S>
  SamplerOption(std::shared_ptr<S> sampler, std::optional<std::size_t> size = std::nullopt) {
    if constexpr (std::is_same_v<S, torch::data::samplers::RandomSampler>)
      shuffle_ = true;
    else if constexpr (std::is_same_v<S, torch::data::samplers::SequentialSampler>)
      shuffle_ = false;
    else
      sampler_ = std::make_shared<detail::TorchSampler<S>>(std::move(sampler), size);
  }
  template <detail::TorchSamplerLike S>
  SamplerOption(S sampler, std::optional<std::size_t> size = std::nullopt)
      : SamplerOption(std::make_shared<S>(std::move(sampler)), size) {}

  bool given() const { return sampler_ != nullptr || shuffle_.has_value(); }
  const std::shared_ptr<IndexSampler>& sampler() const { return sampler_; }
  /// Set when the sampler only said whether to shuffle.
  std::optional<bool> shuffle() const { return shuffle_; }

 private:
  std::shared_ptr<IndexSampler> sampler_;
  std::optional<bool> shuffle_;
};

/// The `batch_sampler` of a loader: a BatchSampler, or a function that makes one over a sampler. The function is the
/// way that works with several ranks whatever the class: it is given this rank's sampler.
class BatchSamplerOption {
 public:
  using Make = std::function<std::shared_ptr<BatchSampler>(std::shared_ptr<IndexSampler> sampler,
                                                           std::size_t batch_size, bool drop_last)>;
  BatchSamplerOption() = default;
  BatchSamplerOption(std::nullptr_t) {}
  template <std::derived_from<BatchSampler> S>
  BatchSamplerOption(std::shared_ptr<S> sampler) : sampler_(std::move(sampler)) {}
  template <std::derived_from<BatchSampler> S>
  BatchSamplerOption(S sampler) : sampler_(std::make_shared<S>(std::move(sampler))) {}
  template <class Function>
  requires std::is_invocable_r_v<std::shared_ptr<BatchSampler>, Function&, std::shared_ptr<IndexSampler>, std::size_t,
                                 bool>
  BatchSamplerOption(Function make) : make_(std::move(make)) {}

  bool given() const { return sampler_ != nullptr || make_ != nullptr; }
  const std::shared_ptr<BatchSampler>& sampler() const { return sampler_; }
  const Make& make() const { return make_; }

 private:
  std::shared_ptr<BatchSampler> sampler_;
  Make make_;
};

}  // namespace fabric
