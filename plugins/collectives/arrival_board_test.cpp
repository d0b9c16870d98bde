#include "plugins/collectives/arrival_board.h"

#include <chrono>
#include <thread>

#include <fabric/error.h>

#include "tests/support/catch.h"

using fabric::collectives::ArrivalBoard;
using std::chrono::milliseconds;

namespace {

struct Boards {
  std::unique_ptr<ArrivalBoard> a = ArrivalBoard::open(0, 2);
  std::unique_ptr<ArrivalBoard> b;
  Boards() {
    REQUIRE(a);
    b = ArrivalBoard::open(1, 2, a->name());
    REQUIRE(b);
    a->unlink();
  }
};

}  // namespace

TEST_CASE("ranks meet on a board many times and compare marks", "[collectives][board]") {
  Boards boards;
  int wrong = 0;
  std::thread other([&] {
    for (int i = 0; i < 2000; ++i)
      wrong += boards.b->meet(i % 5 == 0 ? 1 : 7, "step", milliseconds(20000)) != (i % 5 != 0);
  });
  for (int i = 0; i < 2000; ++i) wrong += boards.a->meet(7, "step", milliseconds(20000)) != (i % 5 != 0);
  other.join();
  CHECK(wrong == 0);
}

TEST_CASE("a board names who is missing, and tells the late one", "[collectives][board]") {
  Boards boards;
  auto begin = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH(boards.a->meet(0, "save", milliseconds(100)),
                    Catch::Contains("rank 0: save timed out") && Catch::Contains("rank 1 did not come"));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  CHECK_THROWS_WITH(boards.b->meet(0, "save", milliseconds(100)), Catch::Contains("rank 0 waited too long"));
}

TEST_CASE("a board that is not there is refused quietly", "[collectives][board]") {
  CHECK(ArrivalBoard::open(1, 2, "/torchfabric.no-such-board") == nullptr);
}
