#include <fabric/data/sampler_options.h>

#include <algorithm>
#include <set>

#include <torch/data/samplers.h>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using fabric::DistributedSampler;
using fabric::DistributedSamplerWrapper;
using Indices = std::vector<std::size_t>;

namespace {

Indices drain(fabric::IndexSampler& sampler) {
  Indices all;
  sampler.reset();
  while (auto index = sampler.next()) all.push_back(*index);
  return all;
}

/// Counts down, and remembers what it was told.
class Backwards : public fabric::IndexSampler {
 public:
  explicit Backwards(std::size_t count, bool sized = true) : claimed(count), count_(count), sized_(sized) {}
  void reset() override { next_ = count_; }
  std::optional<std::size_t> next() override { return next_ > 0 ? std::optional(--next_) : std::nullopt; }
  std::optional<std::size_t> size() const override { return sized_ ? std::optional(claimed) : std::nullopt; }
  void set_epoch(std::int64_t epoch) override { epochs.push_back(epoch); }
  std::size_t claimed;
  std::vector<std::int64_t> epochs;

 private:
  std::size_t count_;
  bool sized_;
  std::size_t next_ = 0;
};

}  // namespace

TEST_CASE("two ranks take every second sample", "[data][sampler]") {
  DistributedSampler first(8, {.num_replicas = 2, .rank = 0, .shuffle = false});
  DistributedSampler second(8, {.num_replicas = 2, .rank = 1, .shuffle = false});
  CHECK(drain(first) == Indices{0, 2, 4, 6});
  CHECK(drain(second) == Indices{1, 3, 5, 7});
}

TEST_CASE("all ranks get the same number of samples and together every one", "[data][sampler]") {
  for (std::size_t n : {0, 1, 2, 5, 8, 31}) {
    for (int world : {1, 2, 3, 5, 16}) {
      for (bool shuffle : {false, true}) {
        INFO("n " << n << ", world " << world << ", shuffle " << shuffle);
        std::multiset<std::size_t> all;
        std::size_t each = (n + static_cast<std::size_t>(world) - 1) / static_cast<std::size_t>(world);
        for (int rank = 0; rank < world; ++rank) {
          DistributedSampler sampler(n, {.num_replicas = world, .rank = rank, .shuffle = shuffle, .seed = 3});
          auto mine = drain(sampler);
          CHECK(mine.size() == each);
          CHECK(sampler.size() == each);
          all.insert(mine.begin(), mine.end());
        }
        CHECK(std::set<std::size_t>(all.begin(), all.end()).size() == n);
        std::size_t least = all.size(), most = 0;
        for (std::size_t i = 0; i < n; ++i) least = std::min(least, all.count(i)), most = std::max(most, all.count(i));
        if (n > 0) CHECK(most - least <= 1);
      }
    }
  }
}

TEST_CASE("the ranks of any world share out one global order", "[data][sampler]") {
  DistributedSampler alone(12, {.shuffle = true, .seed = 5});
  auto whole = drain(alone);
  for (int world : {2, 3, 4}) {
    for (int rank = 0; rank < world; ++rank) {
      DistributedSampler part(12, {.num_replicas = world, .rank = rank, .shuffle = true, .seed = 5});
      auto mine = drain(part);
      for (std::size_t i = 0; i < mine.size(); ++i)
        CHECK(mine[i] == whole[i * static_cast<std::size_t>(world) + static_cast<std::size_t>(rank)]);
    }
  }
}

TEST_CASE("an epoch has its own order, and the same each time", "[data][sampler]") {
  DistributedSampler sampler(20, {.shuffle = true, .seed = 1});
  auto zero = drain(sampler);
  CHECK(drain(sampler) == zero);
  sampler.set_epoch(1);
  CHECK(drain(sampler) != zero);
  sampler.set_epoch(0);
  CHECK(drain(sampler) == zero);
  DistributedSampler next_seed(20, {.shuffle = true, .seed = 2});
  CHECK(drain(next_seed) != zero);
}

TEST_CASE("what is left of an epoch is dealt out without a gap", "[data][sampler]") {
  DistributedSampler whole(11, {.seed = 4});
  auto order = drain(whole);
  Indices dealt;
  for (int rank = 0; rank < 3; ++rank) {
    DistributedSampler part(11, {.num_replicas = 3, .rank = rank, .seed = 4});
    part.skip_front(5);
    CHECK(part.size() == 2);
    auto mine = drain(part);
    dealt.insert(dealt.end(), mine.begin(), mine.end());
  }
  std::sort(dealt.begin(), dealt.end());
  Indices left(order.begin() + 5, order.end());
  std::sort(left.begin(), left.end());
  CHECK(dealt == left);
  whole.skip_front(50);
  CHECK(whole.size() == 0);
  CHECK(drain(whole).empty());
}

TEST_CASE("orders are told apart by a number", "[data][sampler]") {
  using fabric::detail::order_hash;
  std::set<std::uint64_t> all;
  for (const Indices& indices : {Indices{}, Indices{0}, Indices{0, 0}, Indices{0, 1}, Indices{1, 0}, Indices{1, 0, 2}})
    for (std::uint64_t start : {0, 1, 2}) all.insert(order_hash(indices, start));
  CHECK(all.size() == 18);
  CHECK(order_hash(Indices{3, 1}) == order_hash(Indices{3, 1}, 0));
}

TEST_CASE("ranks outside the world are an error", "[data][sampler]") {
  CHECK_THROWS_AS(DistributedSampler(8, {.num_replicas = 2, .rank = 2}), fabric::ConfigError);
  CHECK_THROWS_AS(DistributedSampler(8, {.num_replicas = 2, .rank = -1}), fabric::ConfigError);
  CHECK_THROWS_AS(DistributedSampler(8, {.num_replicas = 0, .rank = 0}), fabric::ConfigError);
}

TEST_CASE("a wrapper shares out any sampler and passes the epoch on", "[data][sampler]") {
  auto inner = std::make_shared<Backwards>(5);
  DistributedSamplerWrapper first(inner, {2, 0}), second(std::make_shared<Backwards>(5), {2, 1});
  CHECK(first.size() == 3);
  CHECK(drain(first) == Indices{4, 2, 0});
  CHECK(drain(second) == Indices{3, 1, 4});
  first.set_epoch(9);
  CHECK(inner->epochs == std::vector<std::int64_t>{9});
}

TEST_CASE("a wrapper draws the indices afresh each epoch", "[data][sampler]") {
  auto inner = std::make_shared<Backwards>(4);
  DistributedSamplerWrapper wrapper(inner, {2, 0});
  CHECK(drain(wrapper) == Indices{3, 1});
  CHECK(drain(wrapper) == Indices{3, 1});
  wrapper.reset();
  inner->claimed = 2;
  CHECK(*wrapper.indices() == Indices{3});
  inner->claimed = 6;
  wrapper.reset();
  CHECK_THROWS_AS(wrapper.indices(), fabric::MisuseError);
}

TEST_CASE("a sampler without a size cannot be shared out", "[data][sampler]") {
  CHECK_THROWS_AS(DistributedSamplerWrapper(std::make_shared<Backwards>(5, false), {2, 0}), fabric::MisuseError);
}

TEST_CASE("LibTorch's samplers are taken as they are", "[data][sampler]") {
  namespace samplers = torch::data::samplers;
  fabric::SamplerOption random(samplers::RandomSampler(10)), sequential(samplers::SequentialSampler(10));
  CHECK(random.shuffle() == true);
  CHECK(sequential.shuffle() == false);
  CHECK_FALSE(random.sampler());

  fabric::SamplerOption distributed(samplers::DistributedSequentialSampler(10, 2, 1));
  REQUIRE(distributed.sampler());
  CHECK(distributed.sampler()->is_sharded());
  CHECK(drain(*distributed.sampler()) == Indices{5, 6, 7, 8, 9});

  struct Custom : samplers::Sampler<> {
    std::size_t next_ = 0;
    void reset(std::optional<std::size_t>) override { next_ = 0; }
    std::optional<std::vector<std::size_t>> next(std::size_t count) override {
      std::vector<std::size_t> some;
      while (some.size() < count && next_ < 100) some.push_back(next_++);
      return some.empty() ? std::nullopt : std::optional(some);
    }
    void save(torch::serialize::OutputArchive&) const override {}
    void load(torch::serialize::InputArchive&) override {}
  };
  fabric::SamplerOption unsized(std::make_shared<Custom>()), sized(Custom(), 100);
  CHECK_FALSE(unsized.sampler()->size());
  CHECK(sized.sampler()->size() == 100u);
  CHECK(drain(*sized.sampler()).size() == 100);
  CHECK(drain(*sized.sampler()).size() == 100);
}
