#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include <ATen/Parallel.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DefaultDtype.h>

#include <fabric/data/dataloader.h>
#include <fabric/data/seed.h>

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
// As above, but for the first sample.
struct StuckLater : Stuck {
  std::shared_ptr<std::atomic<bool>> entered = std::make_shared<std::atomic<bool>>(false);
  std::int64_t get(std::size_t index) {
    if (index == 0) return 0;
    *entered = true;
    return Stuck::get(index);
  }
};
// The stream of 0, 1, 2 …, whose second number takes its time.
struct StuckStream {
  std::shared_ptr<std::atomic<bool>> released = std::make_shared<std::atomic<bool>>(false);
  std::shared_ptr<std::atomic<bool>> entered = std::make_shared<std::atomic<bool>>(false);
  std::int64_t count = 0;
  std::optional<std::int64_t> next() {
    if (count == 1) *entered = true;
    while (count == 1 && !*released) std::this_thread::sleep_for(5ms);
    return count < 4 ? std::optional(count++) : std::nullopt;
  }
  void reset() { count = 0; }
};
// Tells how many threads were in one copy at a time.
struct Crowded {
  std::shared_ptr<std::atomic<int>> most = std::make_shared<std::atomic<int>>(0);
  std::atomic<int> inside = 0;
  Crowded() = default;
  Crowded(const Crowded& other) : most(other.most) {}
  std::int64_t get(std::size_t index) {
    int now = ++inside;
    if (now > *most) *most = now;
    std::this_thread::sleep_for(2ms);
    --inside;
    return static_cast<std::int64_t>(index);
  }
  std::size_t size() const { return 400; }
};
// An index that is not there comes after 0, 1, 2, 3.
class Straying : public fabric::IndexSampler {
 public:
  void reset() override { next_ = 0; }
  std::optional<std::size_t> next() override {
    std::size_t index = next_++;
    if (index == 4) return 99;
    return index < 8 ? std::optional(index) : std::nullopt;
  }

 private:
  std::size_t next_ = 0;
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
    CHECK_THROWS_WITH(*it, Catch::Matchers::Contains("rank 3 waited 0.05 s for batch 0"));
  }
  CHECK(threads_now() == before + 1);  // the stuck one, left to itself
  *dataset.released = true;
  for (int i = 0; i < 2000 && threads_now() > before; ++i) std::this_thread::sleep_for(5ms);
  CHECK(threads_now() == before);
}

TEST_CASE("leaving a loop does not wait for ever for a worker that hangs", "[data][workers]") {
  int before = threads_now();
  StuckLater dataset;
  auto loader = make_dataloader(dataset, {.workers = 1, .prefetch = 1, .timeout = 0.2});
  auto began = std::chrono::steady_clock::now();
  for (auto& batch : loader) {
    CHECK(batch[0].item<int>() == 0);
    while (!*dataset.entered) std::this_thread::sleep_for(1ms);
    break;
  }
  CHECK(std::chrono::steady_clock::now() - began < 20s);
  CHECK(threads_now() == before + 1);
  // The next loop has threads and copies of the dataset of its own.
  CHECK(read(loader, 1) == Numbers{0});
  *dataset.released = true;
  for (int i = 0; i < 2000 && threads_now() > before; ++i) std::this_thread::sleep_for(5ms);
  CHECK(threads_now() == before);
}

TEST_CASE("a stream is not read beside a worker that hangs in it", "[data][workers]") {
  StuckStream stream;
  auto loader = make_dataloader(stream, {.workers = 1, .timeout = 0.2});
  for (auto& batch : loader) {
    CHECK(batch[0].item<int>() == 0);
    while (!*stream.entered) std::this_thread::sleep_for(1ms);
    break;
  }
  CHECK_THROWS_AS(read(loader), fabric::MisuseError);
  *stream.released = true;
  Numbers all;
  for (int i = 0; i < 2000 && all.empty(); ++i) {
    try {
      all = read(loader);
    } catch (const fabric::MisuseError&) {
      std::this_thread::sleep_for(5ms);
    }
  }
  CHECK(all == Numbers{0, 1, 2, 3});
}

TEST_CASE("a new iteration ends the workers of an older one, which would use the same copies", "[data][workers]") {
  Crowded dataset;
  auto loader = make_dataloader(dataset, {.batch_size = 10, .workers = 2, .prefetch = 4});
  auto peek = loader.begin();
  CHECK((*peek).numel() == 10);
  CHECK(read(loader).size() == 400);
  CHECK(*dataset.most == 1);
  CHECK((*peek).numel() == 10);
  CHECK_THROWS_AS(++peek, fabric::MisuseError);
}

TEST_CASE("an error of the sampler comes in its turn, and going on passes it over", "[data][workers]") {
  for (int workers : {0, 2}) {
    INFO("workers " << workers);
    auto loader =
        make_dataloader(loader_test::Counting{8}, {.batch_size = 1, .sampler = Straying(), .workers = workers});
    Numbers good;
    int failures = 0;
    for (auto it = loader.begin();;) {
      try {
        if (it == loader.end()) break;
        append(good, *it);
        ++it;
      } catch (const fabric::MisuseError& error) {
        ++failures;
        CHECK_THAT(error.what(), Catch::Matchers::Contains("index 99"));
        CHECK(good == Numbers{0, 1, 2, 3});
        ++it;
      }
    }
    CHECK(failures == 1);
    CHECK(good == Numbers{0, 1, 2, 3, 5, 6, 7});
  }
}

TEST_CASE("samples that follow the default dtype are noticed when that changes", "[data][workers]") {
  auto usual = c10::get_default_dtype();
  auto make = [](std::optional<at::ScalarType> dtype) {
    return at::zeros({1}, dtype ? at::TensorOptions(*dtype) : at::TensorOptions());
  };
  // What `look` says about a batch before and one in a change of the default dtype.
  auto looks = [&](std::optional<at::ScalarType> dtype) {
    fabric::detail::DtypeWatch watch;
    auto before = fabric::detail::DtypeWatch::default_dtype();
    auto batch = make(dtype);
    CHECK_FALSE(watch.look(before, batch));
    c10::set_default_dtype(caffe2::TypeMeta::Make<double>());
    auto during = fabric::detail::DtypeWatch::default_dtype();
    batch = make(dtype);
    bool noticed = watch.look(during, batch);
    c10::set_default_dtype(usual);
    return noticed;
  };
  CHECK(looks(std::nullopt));
  CHECK_FALSE(looks(at::kFloat));
  CHECK_FALSE(looks(at::kDouble));
  CHECK_FALSE(looks(at::kLong));
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
