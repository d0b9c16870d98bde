// What the ranks of a job agree on before they share out the samples, and which of these come twice.
#include <algorithm>

#include <fabric/data/loader_core.h>

namespace fabric::detail {

// Whatever each rank seeded: by orders of their own the ranks would see some samples twice and others never.
void LoaderCore::agree_with_ranks() {
  Value mine;
  mine["seed"] = seed_;
  mine["dataset"] = dataset_size_ ? Value(*dataset_size_) : Value();
  auto samples = sampler_ && !own_sampler_ ? sampler_->size() : std::nullopt;
  mine["sampler"] = samples ? Value(*samples) : Value();
  mine["shuffle"] = own_sampler_ && own_sampler_->config().shuffle;
  auto all = context_->exchange(mine);
  auto require_equal = [&](const char* key, const std::string& what) {
    for (std::size_t rank = 1; rank < all.size(); ++rank) {
      auto first = to_string(all[0].at(key)), other = to_string(all[rank].at(key));
      if (first != other)
        throw MismatchError("the ranks set up different loaders: " + what + " is " + first + " on rank 0 and " + other +
                            " on rank " + std::to_string(rank) +
                            ". Samples are shared out among the ranks, so give all the same; where each rank has "
                            "samples of its own, set .use_distributed_sampler = false");
    }
  };
  require_equal("dataset", "the number of samples");
  require_equal("sampler", "the number of indices that the sampler gives this rank");
  require_equal("shuffle", "shuffle");
  seed_ = static_cast<std::uint64_t>(all[0].at("seed").as_int());
  if (own_sampler_) own_sampler_->set_seed(seed_);
}

// A sampler of the user's own may draw from a generator that is not the same everywhere. Costs one exchange an epoch.
void LoaderCore::compare_order_over_ranks() {
  Value mine;
  std::exception_ptr failure;
  try {
    wrapper_->indices();
    mine = static_cast<std::int64_t>(wrapper_->order_hash());
  } catch (...) {
    failure = std::current_exception();  // the others, who wait, are told first
  }
  auto all = context_->exchange(mine);
  if (failure) std::rethrow_exception(failure);
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (to_string(all[rank]) != to_string(all[0]))
      throw MismatchError(
          "the sampler gives rank " + std::to_string(rank) +
          (all[rank].is_null() || all[0].is_null() ? " or rank 0 no order" : " another order than rank 0") +
          " in epoch " + std::to_string(epoch_) +
          ", so that samples would be seen twice or never. Let the sampler derive its order from "
          "set_epoch and a seed that all ranks have, or set .use_distributed_sampler = false and let it "
          "choose this rank's own indices");
}

std::size_t LoaderCore::repeated_in(std::size_t batch) const {
  if (is_stream_) return 0;
  auto* own = own_sampler_ ? own_sampler_.get() : dynamic_cast<DistributedSampler*>(sampler_.get());
  if (!own && !wrapper_) return 0;
  std::size_t count = own ? own->size().value_or(0) : wrapper_->size().value_or(0);
  std::size_t distinct = own ? own->distinct() : wrapper_->distinct();
  if (distinct == count) return 0;
  if (batch_sampler_) return kHidden;
  std::size_t begin = batch * options_.batch_size, end = std::min(begin + options_.batch_size, count);
  return end > std::max(begin, distinct) ? end - std::max(begin, distinct) : 0;
}

std::size_t LoaderCore::repeated_samples() const {
  if (!last_batch_) throw MisuseError("repeated_samples was asked before the loader gave a batch");
  if (last_batch_->repeated == kHidden)
    throw MisuseError(
        "some samples of the epoch come twice so that the ranks have as many, and a batch sampler of one's own hides "
        "where. Let its sampler have a size that the number of ranks divides, or gather what tells the samples apart");
  return last_batch_->repeated;
}

}  // namespace fabric::detail
