#include "plugins/collectives/shm/shared_memory_barrier.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using fabric::collectives::SharedMemoryBarrier;
using std::chrono::milliseconds;

namespace {

struct Barriers {
  std::unique_ptr<SharedMemoryBarrier> a = SharedMemoryBarrier::open(0, 2);
  std::unique_ptr<SharedMemoryBarrier> b;
  Barriers() {
    REQUIRE(a);
    b = SharedMemoryBarrier::open(1, 2, a->name());
    REQUIRE(b);
    a->unlink();
  }
};

}  // namespace

TEST_CASE("ranks meet on a barrier many times and compare marks", "[collectives][barrier]") {
  Barriers barriers;
  int wrong = 0;
  std::thread other([&] {
    for (int i = 0; i < 2000; ++i)
      wrong += barriers.b->meet(i % 5 == 0 ? 1 : 7, "step", milliseconds(20000)) != (i % 5 != 0);
  });
  for (int i = 0; i < 2000; ++i) wrong += barriers.a->meet(7, "step", milliseconds(20000)) != (i % 5 != 0);
  other.join();
  CHECK(wrong == 0);
}

TEST_CASE("ranks bring bytes to a barrier, and none is overwritten before all have read it", "[collectives][barrier]") {
  Barriers barriers;
  auto sum = [](SharedMemoryBarrier& barrier, std::uint64_t first, int count) {
    std::uint64_t wrong = 0;
    for (int i = 0; i < count; ++i) {
      std::uint64_t mine[100], theirs[100];
      std::fill_n(mine, 100, first + static_cast<std::uint64_t>(i));
      std::memcpy(barrier.outbox(), mine, sizeof mine);
      barrier.meet(0, "step", milliseconds(20000));
      for (int rank = 0; rank < 2; ++rank) {
        std::memcpy(theirs, barrier.inbox(rank), sizeof theirs);
        for (auto value : theirs) wrong += value != static_cast<std::uint64_t>(i) + (rank == 0 ? 1000u : 5000000u);
      }
    }
    return wrong;
  };
  CHECK(barriers.a->capacity() >= 64 * 1024);
  std::uint64_t wrong = 0;
  std::thread other([&] { wrong = sum(*barriers.b, 5000000, 2000); });
  CHECK(sum(*barriers.a, 1000, 2000) == 0);
  other.join();
  CHECK(wrong == 0);
}

TEST_CASE("a barrier names who is missing, and tells the late one", "[collectives][barrier]") {
  Barriers barriers;
  auto begin = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH(barriers.a->meet(0, "save", milliseconds(100)),
                    Catch::Contains("rank 0: save timed out") && Catch::Contains("rank 1 did not come"));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  CHECK_THROWS_WITH(barriers.b->meet(0, "save", milliseconds(100)), Catch::Contains("rank 0 waited too long"));
}

TEST_CASE("of three ranks on a barrier all see that one came with another mark", "[collectives][barrier]") {
  std::vector<std::unique_ptr<SharedMemoryBarrier>> barriers;
  barriers.push_back(SharedMemoryBarrier::open(0, 3));
  REQUIRE(barriers[0]);
  for (int rank = 1; rank < 3; ++rank) {
    barriers.push_back(SharedMemoryBarrier::open(rank, 3, barriers[0]->name()));
    REQUIRE(barriers.back());
  }
  barriers[0]->unlink();
  std::atomic<int> wrong = 0;
  auto run = [&](int own) {
    auto& barrier = *barriers[static_cast<std::size_t>(own)];
    for (int i = 0; i < 1000; ++i) {
      std::int64_t mine = 10 * i + own, theirs = 0;
      std::memcpy(barrier.outbox(), &mine, sizeof mine);
      bool odd_one_out = i % 3 == own;  // a different rank each time
      wrong += barrier.meet(odd_one_out ? 1 : 7, "step", milliseconds(20000));
      wrong += !barrier.meet(7, "step again", milliseconds(20000));
      std::memcpy(barrier.outbox(), &mine, sizeof mine);
      barrier.meet(7, "step with bytes", milliseconds(20000));
      for (int rank = 0; rank < 3; ++rank) {
        std::memcpy(&theirs, barrier.inbox(rank), sizeof theirs);
        wrong += theirs != 10 * i + rank;
      }
    }
  };
  std::thread second(run, 1), third(run, 2);
  run(0);
  second.join();
  third.join();
  CHECK(wrong.load() == 0);
}

TEST_CASE("a rank that waits long sleeps until the other comes", "[collectives][barrier]") {
  Barriers barriers;
  std::thread late([&] {
    std::this_thread::sleep_for(milliseconds(500));
    barriers.b->meet(7, "step", milliseconds(20000));
  });
  rusage before{}, after{};
  getrusage(RUSAGE_THREAD, &before);
  CHECK(barriers.a->meet(7, "step", milliseconds(20000)));
  getrusage(RUSAGE_THREAD, &after);
  late.join();
  // It looks around ten times a second.
  CHECK(after.ru_nvcsw - before.ru_nvcsw < 40);
}

TEST_CASE("ranks that sleep and ranks that hurry meet, more of them than processors", "[collectives][barrier]") {
  constexpr int kRanks = 8, kMeetings = 1500;
  std::vector<std::unique_ptr<SharedMemoryBarrier>> barriers;
  barriers.push_back(SharedMemoryBarrier::open(0, kRanks));
  REQUIRE(barriers[0]);
  for (int rank = 1; rank < kRanks; ++rank) {
    barriers.push_back(SharedMemoryBarrier::open(rank, kRanks, barriers[0]->name()));
    REQUIRE(barriers.back());
  }
  barriers[0]->unlink();
  std::atomic<int> wrong = 0;
  auto run = [&](int rank) {
    std::minstd_rand random(static_cast<unsigned>(rank + 1));
    auto& barrier = *barriers[static_cast<std::size_t>(rank)];
    for (int i = 0; i < kMeetings; ++i) {
      if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
      wrong += !barrier.meet(i, "step", milliseconds(20000));
    }
  };
  auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) threads.emplace_back(run, rank);
  for (auto& thread : threads) thread.join();
  CHECK(wrong.load() == 0);
  // A ring that was missed would cost a tenth of a second each time.
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
}

TEST_CASE("a barrier that is not there is refused quietly", "[collectives][barrier]") {
  CHECK(SharedMemoryBarrier::open(1, 2, "/torchfabric.no-such-barrier") == nullptr);
  // Nor does one stay that nobody came to.
  std::string name;
  {
    auto barrier = SharedMemoryBarrier::open(0, 2);
    REQUIRE(barrier);
    name = barrier->name();
  }
  CHECK(SharedMemoryBarrier::open(1, 2, name) == nullptr);
}
