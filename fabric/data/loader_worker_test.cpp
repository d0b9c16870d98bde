#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include <ATen/Parallel.h>
#include <ATen/ops/tensor.h>

#include <fabric/dataloader.h>
#include <fabric/seed.h>

#include "fabric/data/loader_test_support.h"
#include "tests/support/catch.h"

namespace {

using namespace std::chrono_literals;
using fabric::make_dataloader;
using loader_test::append;
using loader_test::Numbers;
using loader_test::read;

struct Shuffling {
  std::int64_t get(std::size_t index) {
    std::this_thread::sleep_for(std::chrono::microseconds(index * 7 % 5 * 300));
    return static_cast<std::int64_t>(index);
  }
  std::size_t size() const { return 37; }
};
struct Failing {
  std::int64_t get(std::size_t index) {
    if (index == 5) throw std::out_of_range("no such file");
    return static_cast<std::int64_t>(index);
  }
  std::size_t size() const { return 8; }
};
struct Slow {
  std::chrono::milliseconds pause;
  std::shared_ptr<std::atomic<int>> reads = std::make_shared<std::atomic<int>>(0);
  std::int64_t get(std::size_t index) {
    ++*reads;
    std::this_thread::sleep_for(pause);
    return static_cast<std::int64_t>(index);
  }
  std::size_t size() const { return 1000; }
};
// The first batch of 50 is there soon, any other one would take ten seconds.
struct SlowLater {
  std::int64_t get(std::size_t index) {
    std::this_thread::sleep_for(index < 50 ? 2ms : 200ms);
    return static_cast<std::int64_t>(index);
  }
  std::size_t size() const { return 1000; }
};
// Hangs until it is released.
struct Stuck {
  std::shared_ptr<std::atomic<bool>> released = std::make_shared<std::atomic<bool>>(false);
  std::int64_t get(std::size_t index) {
    while (!*released) std::this_thread::sleep_for(5ms);
    return static_cast<std::int64_t>(index);
  }
  std::size_t size() const { return 1000; }
};
struct Who {
  std::vector<std::int64_t> get_batch(c10::ArrayRef<std::size_t>) {
    auto& info = fabric::worker_info();
    return {info.id, info.num_workers, info.rank, static_cast<std::int64_t>(info.batch),
            static_cast<std::int64_t>(info.seed)};
  }
  std::size_t size() const { return 12; }
};
struct Identity {
  std::vector<const void*> get_batch(c10::ArrayRef<std::size_t>) { return {this}; }
  std::size_t size() const { return 20; }
};
struct Threads {
  Numbers get_batch(c10::ArrayRef<std::size_t>) { return {at::get_num_threads()}; }
  std::size_t size() const { return 4; }
};

int threads_now() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) count += entry.exists();
  return count;
}

}  // namespace

TEST_CASE("the order of batches does not depend on workers", "[data][workers]") {
  auto expected = read(make_dataloader(Shuffling(), {.batch_size = 3, .shuffle = true}));
  REQUIRE(expected.size() == 37);
  for (int workers : {1, 2, 5})
    for (int prefetch : {1, 3}) {
      INFO("workers " << workers << ", prefetch " << prefetch);
      auto loader =
          make_dataloader(Shuffling(), {.batch_size = 3, .shuffle = true, .workers = workers, .prefetch = prefetch});
      CHECK(read(loader) == expected);
      CHECK(read(loader).size() == 37);
    }
}

TEST_CASE("workers out of order give every batch once", "[data][workers]") {
  auto loader = make_dataloader(Shuffling(), {.batch_size = 2, .workers = 3, .in_order = false});
  auto all = read(loader);
  std::sort(all.begin(), all.end());
  REQUIRE(all.size() == 37);
  CHECK(std::unique(all.begin(), all.end()) == all.end());

  Numbers parts;
  std::size_t batches = 0;
  for (auto& batch : loader) {
    append(parts, batch);
    if (++batches == 7) break;
  }
  auto other = make_dataloader(Shuffling(), {.batch_size = 2, .workers = 2, .in_order = false});
  other.load_state_dict(loader.state_dict());
  auto rest = read(other);
  parts.insert(parts.end(), rest.begin(), rest.end());
  std::sort(parts.begin(), parts.end());
  CHECK(parts == all);
}

TEST_CASE("a failing sample is named, with or without workers, and can be passed over", "[data][workers]") {
  for (int workers : {0, 2}) {
    auto loader = make_dataloader(Failing(), {.batch_size = 2, .workers = workers});
    Numbers good;
    int failures = 0;
    for (auto it = loader.begin();;) {
      try {
        if (it == loader.end()) break;
        append(good, *it);
        ++it;
      } catch (const fabric::DataError& error) {
        ++failures;
        CHECK(error.index() == 5u);
        CHECK(error.batch() == 2);
        CHECK(error.worker() == (workers ? 0 : -1));
        CHECK_THAT(error.what(), Catch::Matchers::Contains("sample 5") && Catch::Matchers::Contains("no such file"));
        CHECK_THROWS_AS(std::rethrow_exception(error.cause()), std::out_of_range);
        CHECK_THROWS_AS(*it, fabric::MisuseError);
        ++it;
      }
    }
    CHECK(failures == 1);
    CHECK(good == Numbers{0, 1, 2, 3, 6, 7});
  }
}

TEST_CASE("leaving a loop or dropping a loader joins its workers within a sample", "[data][workers]") {
  int before = threads_now();
  auto began = std::chrono::steady_clock::now();
  {
    auto loader = make_dataloader(SlowLater(), {.batch_size = 50, .workers = 3, .prefetch = 4});
    auto it = loader.begin();
    CHECK(threads_now() == before);
    CHECK((*it).numel() == 50);
    CHECK(threads_now() == before + 3);
    began = std::chrono::steady_clock::now();
  }
  CHECK(std::chrono::steady_clock::now() - began < 5s);
  CHECK(threads_now() == before);
}

TEST_CASE("workers read no further ahead than they may", "[data][workers]") {
  Slow dataset{0ms};
  auto loader = make_dataloader(dataset, {.workers = 2, .prefetch = 3});
  auto it = loader.begin();
  ++it;
  std::this_thread::sleep_for(50ms);
  CHECK(*dataset.reads <= 2 + 2 * 3);
}

TEST_CASE("a worker that hangs is an error in time, and does not block the end", "[data][workers]") {
  int before = threads_now();
  Stuck dataset;
  {
    auto loader = make_dataloader(dataset, {.workers = 1, .timeout = 0.05}, {.rank = 3});
    auto it = loader.begin();
    CHECK_THROWS_WITH(*it, Catch::Matchers::Contains("rank 3") && Catch::Matchers::Contains("batch 0"));
  }
  CHECK(threads_now() == before + 1);  // the stuck one, left to itself
  *dataset.released = true;
  for (int i = 0; i < 2000 && threads_now() > before; ++i) std::this_thread::sleep_for(5ms);
  CHECK(threads_now() == before);
}

TEST_CASE("a dataset knows which worker it runs in", "[data][workers]") {
  for (int workers : {0, 3}) {
    auto loader =
        make_dataloader(Who(), {.workers = workers, .seed = 40}, {.shard = fabric::SamplerShard{2, 1}, .rank = 1});
    for (int epoch = 0; epoch < 2; ++epoch) {
      std::int64_t batch = 0;
      for (auto& who : loader) {
        std::int64_t id = workers ? batch % workers : 0;
        auto seed =
            fabric::worker_seed(static_cast<std::uint64_t>(40 + epoch), static_cast<std::uint64_t>(id), 1).generator;
        CHECK(who == Numbers{id, workers, 1, batch, static_cast<std::int64_t>(seed)});
        ++batch;
      }
      CHECK(batch == 6);
    }
  }
  CHECK(fabric::worker_info().num_workers == 0);
  CHECK(fabric::worker_info().generator().defined());
}

TEST_CASE("each worker has its own copy of the dataset, a shared one is shared", "[data][workers]") {
  auto identities = [](const auto& loader) {
    std::set<const void*> all;
    for (auto& batch : loader) all.insert(batch.begin(), batch.end());
    return all;
  };
  CHECK(identities(make_dataloader(Identity(), {.workers = 4})).size() == 4);
  auto shared = std::make_shared<Identity>();
  CHECK(identities(make_dataloader(shared, {.workers = 4})) == std::set<const void*>{shared.get()});
}

TEST_CASE("a worker uses one thread per operator, other threads as many as before", "[data][workers]") {
  int before = at::get_num_threads();
  at::set_num_threads(3);
  for (auto& threads : make_dataloader(Threads(), {.workers = 2})) CHECK(threads == Numbers{1});
  CHECK(at::get_num_threads() == 3);
  int elsewhere = 0;
  std::thread([&] { elsewhere = at::get_num_threads(); }).join();
  CHECK(elsewhere == 3);
  at::set_num_threads(before);
}
