// What a host does about nodes that are gone, and how a new host goes on.
#include "launcher/rendezvous/leader_test_support.h"

using namespace fabric::rendezvous;

TEST_CASE("a silent node counts as gone after three intervals", "[leader]") {
  auto play = running(some(1, 2), 2);
  play.silence("a2");
  play.go(2.7);
  CHECK(play.stops.empty());
  play.go(0.4);
  REQUIRE(play.stops.contains("a1"));
  CHECK(has(play.stops["a1"], "it was silent for"));
  play.all_stop();
  CHECK(play.players() == 1);
  CHECK(has(play.join("a2", -1, true, 0), "declared gone"));
}

TEST_CASE("a broken connection that comes back at once is nothing", "[leader]") {
  auto play = running(some(1, 2), 2);
  play.break_connection("a2");
  play.go(0.2);
  REQUIRE(play.leader().take_suspects().size() == 1);
  play.leader().settle("a2", Leader::Fate::lives, Time(in_clock(1000)));
  play.go(0.2);
  CHECK(play.join("a2", -1, true, 0).empty());
  play.go(5);
  CHECK(play.stops.empty());
  // One that lives and stays away is silent in the end.
  play.break_connection("a2");
  play.leader().settle("a2", Leader::Fate::lives, Time(in_clock(1000)));
  play.go(2.5);
  CHECK(play.stops.empty());
  play.go(1);
  CHECK(play.stops.contains("a1"));
}

TEST_CASE("a host whose nodes went over to another while it slept gives up", "[leader]") {
  auto play = running(some(1, 3), 3);
  play.break_connection("a2");
  play.break_connection("a3");
  play.leader().settle("a2", Leader::Fate::moved, Time(in_clock(1000)));
  play.go(0.1);
  REQUIRE(play.ends.contains("a1"));
  CHECK(play.ends["a1"].code == 95);
  CHECK(has(play.ends["a1"].reason, "another host"));
}

TEST_CASE("too few nodes left: the job ends within seconds and says who is gone", "[leader]") {
  auto play = running(some(2, 2, 3), 2);
  play.cut("a2");
  play.go(0.5);
  play.all_stop();
  REQUIRE(play.ends.contains("a1"));
  CHECK(play.ends["a1"].code == 95);
  CHECK(has(play.ends["a1"].reason, "a2"));
  auto left = running(some(2, 2, 3), 2);
  left.say("a2", Leave{15});
  left.all_stop();
  CHECK(left.ends["a1"].code == 143);
  CHECK(has(left.ends["a1"].reason, "stopped by SIGTERM"));
  auto settings = some(2, 2);
  settings.timing.replacement = 20;
  auto waits = running(settings, 2);
  waits.cut("a2");
  waits.go(0.5);
  waits.all_stop();
  waits.go(10);
  CHECK(waits.ends.empty());
  waits.join("a3");
  CHECK(waits.round("a3") == 1);
}

TEST_CASE("a failure beside the loss of a node does not count", "[leader]") {
  auto play = running(some(1, 2), 2);  // no restart is allowed
  play.end("a1", 1);                   // its peer is gone, which shows a moment later
  play.cut("a2");
  play.go(1);
  CHECK(play.ends.empty());
  CHECK(play.players() == 1);
  CHECK(play.starts["a1"].roster.charged == 0);
}

TEST_CASE("after silence only the greater part goes on", "[leader]") {
  auto play = running(some(1, 4), 4);
  for (const char* name : {"a2", "a3", "a4"}) play.silence(name);
  play.go(4);
  play.all_stop();
  REQUIRE(play.ends.contains("a1"));
  CHECK(play.ends["a1"].code == 95);
  CHECK(has(play.ends["a1"].reason, "majority"));
  auto half = running(some(1, 4), 4);
  for (const char* name : {"a3", "a4"}) half.silence(name);
  half.go(4);
  half.all_stop();
  CHECK(half.players() == 2);
  // Launchers that certainly ended are no other part.
  auto dead = running(some(1, 4), 4);
  for (const char* name : {"a2", "a3", "a4"}) dead.cut(name);
  dead.go(1);
  dead.all_stop();
  CHECK(dead.players() == 1);
}

TEST_CASE("rank 0's address is one that all nodes reach; else the tried ones are named", "[leader]") {
  Play play(some(2, 2));
  play.unreachable["a2"] = {"10.0.0.1"};
  play.join("a1"), play.join("a2");
  REQUIRE(play.ends.contains("a2"));
  CHECK(play.ends["a2"].code == 95);
  CHECK(has(play.ends["a2"].reason, "10.0.0.1: no route"));
  Play taken(some(2, 2));
  taken.port_problem = "port 7 is taken by process 1 (x)";
  taken.join("a1"), taken.join("a2");
  CHECK(taken.ends["a1"].code == 125);
  CHECK(has(taken.ends["a1"].reason, "taken by process 1 (x)"));
}

TEST_CASE("nodes with other limits are refused", "[leader]") {
  Play play(some(2, 3));
  CHECK(has(play.leader().join(Hello{named("a2"), 1, 3}, Time(in_clock(1000)))->why, "--nnodes 2:3"));
}

TEST_CASE("a new host goes on where the old one was", "[leader]") {
  auto before = running(some(1, 3, 5), 3);
  before.end("a2", 1);
  before.all_stop();
  auto roster = before.starts["a2"].roster;
  REQUIRE(roster.round == 1);
  Play play(some(1, 3, 5), "a2", roster, {{"a1", true}});
  CHECK(play.join("a2", -1, true, 1).empty());
  play.go(1);
  CHECK(play.starts.empty());  // a3 may come back
  CHECK(play.join("a3", -1, true, 1).empty());
  CHECK(has(play.stops["a3"], "a1"));  // it may not have noticed
  play.say("a2", Ended{.round = 1});
  play.say("a3", Ended{.round = 1});
  CHECK(play.order() == "a2 a3 ");
  CHECK(play.round("a3") == 2);
  CHECK(play.starts["a3"].roster.charged == 1);
  // One that does not come back is silent: one of two that may live, and not the first of them.
  Play alone(some(1, 3, 5), "a3", roster, {{"a1", true}, {"a2", false}});
  alone.join("a3", -1, true, 1);
  alone.say("a3", Ended{.round = 1});
  alone.go(20);
  CHECK(alone.ends["a3"].code == 95);
}

TEST_CASE("a new host waits a moment for the spares, who take the place of the old one", "[leader]") {
  for (bool comes : {true, false}) {
    auto before = running(some(1, 2), 2);
    before.join("a3"), before.join("a4");
    before.cut("a4");
    before.go(0.1);
    auto roster = before.starts["a2"].roster;
    roster.spares = before.known_spares["a2"];
    REQUIRE(roster.spares.size() == 1);
    Play play(some(1, 2), "a2", roster, {{"a1", true}});
    CHECK(play.join("a2", -1, true, 0).empty());
    play.say("a2", Ended{.round = 0});
    play.go(0.5);
    CHECK(play.starts.empty());
    if (comes) CHECK(play.join("a3", -1, true, -1).empty());
    play.go(comes ? 0.1 : 3);
    CHECK(play.order() == (comes ? "a2 a3 " : "a2 "));
    CHECK(play.round("a2") == 1);
    CHECK(play.starts["a2"].roster.charged == 0);
  }
}
