// How rounds of a job begin and end: who takes part, what is charged, who is refused.
#include "launcher/rendezvous/leader_test_support.h"

using namespace fabric::rendezvous;

TEST_CASE("a fixed number of nodes starts when all are there, by wanted rank", "[leader]") {
  Play play(some(3, 3));
  play.join("a1", 2);
  play.join("a3", 0);
  play.go(50);
  CHECK(play.starts.empty());
  CHECK(has(play.join("a4", 0), "--node-rank 0 is taken by a3"));
  play.join("a2", 1);
  REQUIRE(play.starts.size() == 3);
  CHECK(play.order() == "a3 a2 a1 ");
  CHECK(play.starts["a1"].master_addr == "10.0.0.3");
  CHECK(play.starts["a1"].master_port == 4321);
  CHECK(has(play.join("a5"), "runs already with all of its 3 nodes"));
}

TEST_CASE("one deadline for joining; who did not come is named", "[leader]") {
  auto settings = some(2, 2);
  settings.expected = {"gpu-08", "gpu-09"};
  Play play(settings);
  play.join("a1", 0);
  play.go(59);
  CHECK(play.ends.empty());
  play.go(2);
  REQUIRE(play.ends.contains("a1"));
  CHECK(play.ends["a1"].code == 95);
  CHECK(has(play.ends["a1"].reason, "node 1 (gpu-09)"));
  CHECK(has(play.join("a2", 1), "the job is over"));
}

TEST_CASE("an elastic job waits the last call out, and no longer than for MAX", "[leader]") {
  Play play(some(1, 3));
  play.join("a1");
  play.go(4);
  CHECK(play.starts.empty());
  play.go(1.2);
  CHECK(play.players() == 1);
  Play full(some(1, 3));
  full.join("a1"), full.join("a2"), full.join("a3");
  CHECK(full.players() == 3);
  Play few(some(2, 3));
  few.join("a1");
  few.go(58);
  few.join("a2");
  few.go(1.9);
  CHECK(few.starts.empty());
  few.go(0.2);  // the deadline for joining ends the last call too
  CHECK(few.players() == 2);
}

TEST_CASE("nodes that come late share one restart, which is not charged", "[leader]") {
  auto play = running(some(1, 3), 1);
  play.join("a3");
  play.go(0.5);
  play.join("a2");
  CHECK(play.stops.empty());
  play.go(0.6);
  REQUIRE(play.stops.contains("a1"));
  CHECK(has(play.stops["a1"], "a2"));
  CHECK(has(play.stops["a1"], "a3"));
  play.all_stop();
  CHECK(play.players() == 3);
  CHECK(play.order() == "a1 a2 a3 ");
  for (const char* name : {"a1", "a2", "a3"}) CHECK(play.round(name) == 1);
  CHECK(play.starts["a1"].roster.charged == 0);
}

TEST_CASE("spares beyond MAX wait and take the place of one that is gone", "[leader]") {
  auto play = running(some(1, 2), 2);
  play.join("a3");
  play.go(5);
  CHECK(play.spares.contains("a3"));
  CHECK(play.stops.empty());
  play.cut("a2");
  play.go(0.5);
  REQUIRE(play.stops.contains("a1"));
  play.all_stop();
  CHECK(play.order() == "a1 a3 ");
  CHECK(play.round("a3") == 1);
  CHECK(play.starts["a3"].roster.charged == 0);
}

TEST_CASE("too many at the first round: the others are spares", "[leader]") {
  Play play(some(2, 2));
  play.join("a1"), play.join("a2");
  CHECK(play.players() == 2);
  auto elastic = running(some(1, 2), 2);
  elastic.join("a3"), elastic.join("a4");
  elastic.go(3);
  CHECK(elastic.spares.size() == 2);
}

TEST_CASE("a failure stops all nodes and is charged once; counters are equal", "[leader]") {
  auto play = running(some(2, 2, 2), 2);
  play.end("a2", 7);
  REQUIRE(play.stops.contains("a1"));
  CHECK(has(play.stops["a1"], "a2 failed"));
  play.end("a1", 9);  // fails because its peer did
  CHECK(play.round("a1") == 1);
  CHECK(play.round("a2") == 1);
  CHECK(play.starts["a1"].roster.charged == 1);
  play.end("a1", 8);
  play.all_stop();
  CHECK(play.round("a2") == 2);
  play.end("a1", 8);
  play.all_stop();
  REQUIRE(play.ends.size() == 2);
  for (const char* name : {"a1", "a2"}) {
    CHECK(play.ends[name].code == 8);
    CHECK(play.ends[name].cause == "a1 failed");
    CHECK(play.ends[name].reporter_id == "a1");
  }
}

TEST_CASE("do not retry and no progress hold for all nodes", "[leader]") {
  auto never = running(some(2, 2, 9), 2);
  never.end("a2", 93);
  never.all_stop();
  CHECK(never.ends["a1"].code == 93);
  auto play = running(some(2, 2, 9), 2);
  play.step = 5;
  for (int i = 0; i < 4; ++i) {
    CHECK(play.round("a1") == i);
    play.end(i % 2 ? "a1" : "a2", 3);
    play.all_stop();
  }
  REQUIRE(play.ends.contains("a1"));
  CHECK(play.ends["a1"].code == 96);
  CHECK(has(play.ends["a2"].reason, "step 5"));
}

TEST_CASE("success takes all nodes; one that has ended waits for the others", "[leader]") {
  auto play = running(some(1, 3, 1), 2);
  play.end("a1", 0);
  play.go(30);
  CHECK(play.ends.empty());
  play.join("a3");  // too late to begin again
  play.go(5);
  CHECK(play.stops.empty());
  play.end("a2", 0);
  for (const char* name : {"a1", "a2", "a3"}) CHECK(play.ends[name].code == 0);
  CHECK(play.ends.size() == 3);
  // A failure after others have ended takes all of them into the next round.
  auto again = running(some(2, 2, 1), 2);
  again.end("a1", 0);
  again.end("a2", 4);
  CHECK(again.round("a1") == 1);
}
