// Ranks that seed themselves differently share one order; ranks that bring different data are told so.
#include <fabric/data/dataloader.h>

#include <algorithm>
#include <numeric>
#include <set>

#include <fabric/base/error.h>
#include <fabric/base/value.h>

#include "fabric/data/loader_test_support.h"
#include "tests/support/catch.h"

using Catch::Contains;
using fabric::LoaderContext;
using fabric::make_dataloader;
using fabric::MismatchError;
using fabric::SamplerShard;
using fabric::Value;
using loader_test::Counting;
using loader_test::Numbers;
using loader_test::read;

namespace {

// Rank 0 and rank 1 of a job, one after the other in this process: what rank 0 says is kept for rank 1.
struct TwoRanks {
  std::vector<Value> said;
  std::size_t heard = 0;

  LoaderContext context(int rank, std::optional<std::uint64_t> seed = {}) {
    LoaderContext made{.shard = SamplerShard{2, rank}, .rank = rank, .seed = seed};
    if (rank == 0)
      made.exchange = [this](const Value& value) {
        said.push_back(value);
        return std::vector<Value>{value, value};
      };
    else
      made.exchange = [this](const Value& value) { return std::vector<Value>{said.at(heard++), value}; };
    return made;
  }
};

// An order of its own, as one drawn from a generator that is not the same on all ranks.
class Rotated : public fabric::IndexSampler {
 public:
  Rotated(std::size_t count, std::size_t begin) : count_(count), begin_(begin) {}
  void reset() override { next_ = 0; }
  std::optional<std::size_t> next() override {
    return next_ < count_ ? std::optional((begin_ + next_++) % count_) : std::nullopt;
  }
  std::optional<std::size_t> size() const override { return count_; }

 private:
  std::size_t count_, begin_;
  std::size_t next_ = 0;
};

}  // namespace

TEST_CASE("ranks with seeds of their own hand out each sample once", "[data][agreement]") {
  for (bool in_options : {false, true}) {
    TwoRanks job;
    std::set<std::int64_t> seen;
    for (int rank : {0, 1}) {
      fabric::DataLoaderOptions options{.batch_size = 16, .shuffle = true};
      auto seed = static_cast<std::uint64_t>(7 + rank);
      if (in_options) options.seed = seed;
      auto loader =
          make_dataloader(Counting{1000}, options, job.context(rank, in_options ? std::nullopt : std::optional(seed)));
      CHECK(loader.state_dict().at("seed").as_int() == 7);
      auto numbers = read(loader);
      CHECK(numbers.size() == 500);
      seen.insert(numbers.begin(), numbers.end());
    }
    CHECK(seen.size() == 1000);
  }
}

TEST_CASE("where samples are not shared out each rank keeps its seed", "[data][agreement]") {
  TwoRanks job;
  auto loader =
      make_dataloader(Counting{100}, {.shuffle = true, .use_distributed_sampler = false, .seed = 8}, job.context(1));
  CHECK(loader.state_dict().at("seed").as_int() == 8);
  CHECK(read(loader).size() == 100);
}

TEST_CASE("datasets and samplers of other sizes on other ranks are refused at setup", "[data][agreement]") {
  TwoRanks job;
  make_dataloader(Counting{1000}, {.shuffle = true}, job.context(0));
  CHECK_THROWS_WITH(make_dataloader(Counting{998}, {.shuffle = true}, job.context(1)),
                    Contains("different loaders") && Contains("1000 on rank 0") && Contains("998 on rank 1"));
  TwoRanks other;
  make_dataloader(Counting{10}, {.sampler = std::make_shared<Rotated>(10, 0)}, other.context(0));
  CHECK_THROWS_AS(make_dataloader(Counting{10}, {.sampler = std::make_shared<Rotated>(8, 0)}, other.context(1)),
                  MismatchError);
  TwoRanks third;
  make_dataloader(Counting{10}, {.shuffle = true}, third.context(0));
  CHECK_THROWS_WITH(make_dataloader(Counting{10}, {}, third.context(1)), Contains("shuffle is true on rank 0"));
}

TEST_CASE("a sampler with another order on another rank is refused when the epoch begins", "[data][agreement]") {
  TwoRanks job;
  auto zero = make_dataloader(Counting{10}, {.sampler = std::make_shared<Rotated>(10, 0)}, job.context(0));
  CHECK(read(zero) == Numbers{0, 2, 4, 6, 8});
  auto one = make_dataloader(Counting{10}, {.sampler = std::make_shared<Rotated>(10, 3)}, job.context(1));
  CHECK_THROWS_WITH(read(one), Contains("another order than rank 0") && Contains("epoch 0"));
  TwoRanks same;
  auto first = make_dataloader(Counting{10}, {.sampler = std::make_shared<Rotated>(10, 3)}, same.context(0));
  read(first);
  auto second = make_dataloader(Counting{10}, {.sampler = std::make_shared<Rotated>(10, 3)}, same.context(1));
  CHECK(read(second) == Numbers{4, 6, 8, 0, 2});
}

TEST_CASE("samples that stand in a batch a second time are counted", "[data][agreement]") {
  // 10 samples over 4 ranks: 3 for each, two of them repeated.
  std::size_t own = 0;
  for (int rank = 0; rank < 4; ++rank) {
    for (int workers : {0, 2}) {
      auto loader = make_dataloader(Counting{10}, {.batch_size = 2, .workers = workers},
                                    LoaderContext{.shard = SamplerShard{4, rank}, .rank = rank});
      CHECK_THROWS_AS(loader.repeated_samples(), fabric::MisuseError);
      for (auto& batch : loader) {
        auto repeated = static_cast<std::int64_t>(loader.repeated_samples());
        CHECK(repeated == (batch.size(0) == 1 && rank >= 2 ? 1 : 0));
        if (workers == 0) own += static_cast<std::size_t>(batch.size(0) - repeated);
      }
    }
  }
  CHECK(own == 10);
  // Fewer samples than ranks: the rest have none of their own.
  for (int rank = 0; rank < 4; ++rank) {
    auto loader =
        make_dataloader(Counting{2}, {.batch_size = 8}, LoaderContext{.shard = SamplerShard{4, rank}, .rank = rank});
    read(loader);
    CHECK(loader.repeated_samples() == (rank < 2 ? 0 : 1));
  }
  auto sampled = make_dataloader(Counting{10}, {.batch_size = 3, .sampler = std::make_shared<Rotated>(7, 0)},
                                 LoaderContext{.shard = SamplerShard{2, 1}, .rank = 1});
  std::vector<std::size_t> repeated;
  for ([[maybe_unused]] auto& batch : sampled) repeated.push_back(sampled.repeated_samples());
  CHECK(repeated == std::vector<std::size_t>{0, 1});
  auto alone = make_dataloader(Counting{10}, {.batch_size = 4});
  read(alone);
  CHECK(alone.repeated_samples() == 0);
}
