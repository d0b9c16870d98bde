#include "tests/support/sim_device/byte_history.h"

#include <random>

#include "tests/support/catch.h"

using sim::Access;
using sim::ByteHistory;
using sim::VectorClock;

namespace {

Access used_by(sim::Place place, std::uint64_t tick) { return {place, tick, "op"}; }

// The same rules, byte by byte.
class PlainHistory {
 public:
  bool record(std::size_t begin, std::size_t end, bool writes, const Access& now, const VectorClock& clock) {
    bool found = false;
    for (std::size_t byte = begin; byte < end; ++byte) {
      auto& seen = bytes_[byte];
      for (const auto& [other, wrote] : seen)
        found |= (writes || wrote) && other.place != now.place && other.tick > clock[other.place];
      if (writes) seen.clear();
      seen.push_back({now, writes});
    }
    return found;
  }

 private:
  std::map<std::size_t, std::vector<std::pair<Access, bool>>> bytes_;
};

}  // namespace

TEST_CASE("a history tells byte ranges apart", "[sim][history]") {
  ByteHistory history;
  VectorClock none;
  CHECK_FALSE(history.record(0, 100, true, used_by(0, 1), none));
  CHECK_FALSE(history.record(100, 200, true, used_by(1, 1), none));
  CHECK(history.ranges() == 2);
  auto found = history.record(90, 110, false, used_by(2, 1), none);
  REQUIRE(found);
  CHECK((found->with.place == 0 && found->with_write));
  CHECK(history.record(150, 151, true, used_by(0, 2), none)->with.place == 1);
  CHECK(history.last_write(150).place == 0);
  CHECK(history.last_write(151).place == 1);
  CHECK(history.last_write(200).tick == 0);
}

TEST_CASE("a read is an obstacle for writes alone, and what follows it in order replaces it", "[sim][history]") {
  ByteHistory history;
  VectorClock none, after_first;
  after_first[0] = 1;
  CHECK_FALSE(history.record(0, 10, false, used_by(0, 1), none));
  CHECK_FALSE(history.record(0, 10, false, used_by(1, 1), none));
  CHECK(history.record(0, 10, true, used_by(2, 1), after_first)->with.place == 1);
  history.clear();
  CHECK_FALSE(history.record(0, 10, false, used_by(0, 1), none));
  CHECK_FALSE(history.record(0, 10, false, used_by(1, 1), after_first));
  VectorClock after_second;
  after_second[1] = 1;
  CHECK_FALSE(history.record(0, 10, true, used_by(2, 1), after_second));
}

TEST_CASE("a history agrees with one that keeps every access to every byte", "[sim][history]") {
  std::mt19937 random(7);
  auto draw = [&](int below) { return static_cast<int>(random() % static_cast<unsigned>(below)); };
  for (int round = 0; round < 50; ++round) {
    ByteHistory history;
    PlainHistory plain;
    std::array<VectorClock, 4> clocks{};
    for (int step = 0; step < 100; ++step) {
      int who = draw(4);
      auto& clock = clocks[static_cast<std::size_t>(who)];
      if (draw(2) == 0) {
        clock.join(clocks[static_cast<std::size_t>(draw(4))]);
        continue;
      }
      auto begin = static_cast<std::size_t>(draw(30)), end = begin + 1 + static_cast<std::size_t>(draw(10));
      bool writes = draw(3) == 0;
      Access now = used_by(who, ++clock[who]);
      bool expected = plain.record(begin, end, writes, now, clock);
      bool found = history.record(begin, end, writes, now, clock).has_value();
      // After an error both go on from states that differ: the plain one remembers what the write forgot.
      CHECK(found == expected);
      if (expected) break;
    }
  }
}
