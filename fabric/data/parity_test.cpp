// Orders and seeds, number by number, as Python's torch and Lightning have them.
#include <vector>

#include <ATen/ops/rand.h>

#include <fabric/data/dataloader.h>
#include <fabric/data/seed.h>

#include "tests/support/catch.h"

namespace {

using Indices = std::vector<std::size_t>;

struct Permutation {
  std::uint64_t seed;
  Indices order;
};
struct Shard {
  std::size_t n;
  int world, rank;
  std::int64_t epoch;
  std::uint64_t seed;
  bool shuffle, drop_last;
  std::size_t count;
  std::uint64_t digest;
};
struct Batches {
  std::size_t batch_size;
  int rank;
  int epoch;
  std::vector<std::vector<std::int64_t>> batches;
};
struct Seeds {
  std::uint64_t base, worker, rank;
  fabric::WorkerSeeds seeds;
};

#include "tests/parity/data_order.inc"

std::uint64_t digest(const Indices& indices) {
  std::uint64_t value = 0;
  for (std::size_t index : indices) value = value * 1000003 + index + 1;
  return value;
}

struct Counted {
  std::size_t count;
  std::int64_t get(std::size_t index) { return static_cast<std::int64_t>(index); }
  std::size_t size() const { return count; }
};

std::vector<std::int64_t> list_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<std::int64_t>(), tensor.const_data_ptr<std::int64_t>() + tensor.numel()};
}

}  // namespace

TEST_CASE("shuffling gives Python's permutations", "[data][parity]") {
  for (const auto& expected : kPermutations) {
    fabric::DistributedSampler sampler(10, {.seed = expected.seed});
    CHECK(*sampler.indices() == expected.order);
  }
}

TEST_CASE("every rank takes what Python's sampler gives it", "[data][parity]") {
  for (const auto& expected : kShards) {
    INFO("n " << expected.n << ", world " << expected.world << ", epoch " << expected.epoch << ", shuffle "
              << expected.shuffle << ", drop_last " << expected.drop_last);
    fabric::DistributedSampler sampler(expected.n, {.num_replicas = expected.world,
                                                    .rank = expected.rank,
                                                    .shuffle = expected.shuffle,
                                                    .seed = expected.seed,
                                                    .drop_last = expected.drop_last});
    sampler.set_epoch(expected.epoch);
    CHECK(sampler.size() == expected.count);
    CHECK(sampler.indices()->size() == expected.count);
    CHECK(digest(*sampler.indices()) == expected.digest);
  }
}

TEST_CASE("batches of two ranks over two epochs are those of Python's loader", "[data][parity]") {
  for (std::size_t i = 0; i < std::size(kBatches); i += 2) {
    const auto& first = kBatches[i];
    auto loader = fabric::make_dataloader(Counted{11}, {.batch_size = first.batch_size, .shuffle = true, .seed = 7},
                                          {.shard = fabric::SamplerShard{2, first.rank}, .rank = first.rank});
    for (int epoch = 0; epoch < 2; ++epoch) {
      const auto& expected = kBatches[i + static_cast<std::size_t>(epoch)];
      REQUIRE(expected.epoch == epoch);
      std::vector<std::vector<std::int64_t>> batches;
      for (auto& batch : loader) batches.push_back(list_of(batch));
      CHECK(batches == expected.batches);
      CHECK(loader.size() == expected.batches.size());
    }
  }
}

TEST_CASE("worker seeds are Lightning's", "[seed][parity]") {
  for (const auto& expected : kSeeds)
    CHECK(fabric::worker_seed(expected.base, expected.worker, expected.rank) == expected.seeds);
}

TEST_CASE("the seed gives Python's random numbers", "[seed][parity]") {
  fabric::seed_everything(42, true, false, std::make_shared<fabric::MapEnv>());
  auto numbers = at::rand({3}, at::kDouble);
  for (int i = 0; i < 3; ++i) CHECK(numbers[i].item<double>() == kRandomNumbers[i]);
}
