// The rules of a rendezvous, with nodes that are played and a clock that is turned by hand.
#include "launcher/rendezvous/host.h"

#include <map>
#include <set>

#include "tests/support/catch.h"

using namespace fabric::rendezvous;

namespace {

Settings some(int min, int max, int max_restarts = 0) {
  Settings settings;
  settings.min_nodes = min;
  settings.max_nodes = max;
  settings.max_restarts = max_restarts;
  settings.grace = 2;
  settings.timing.join = 60;
  settings.timing.last_call = 5;
  settings.timing.heartbeat = 1;
  settings.run_id = "job";
  return settings;
}

NodeInfo named(const std::string& name, int local_size = 1, int wanted = -1) {
  NodeInfo node;
  node.id = name;
  node.host = name;
  node.local_size = local_size;
  node.wanted_rank = wanted;
  node.addresses = {"10.0.0." + name.substr(1)};
  node.port = 1000;
  return node;
}

/// Nodes a1, a2, …: they send beats, reach everything, and keep what they were told. a1 hosts.
class Play {
 public:
  explicit Play(const Settings& settings) : settings_(settings), host_(settings, named("a1"), at(0)) {}
  Play(const Settings& settings, const std::string& own, const Roster& roster, const Gone& gone)
      : settings_(settings), host_(settings, named(own), roster, gone, at(0)) {}

  std::string join(const std::string& name, int wanted = -1, bool resumes = false, int round = -1) {
    Hello hello{"", named(name, 1, wanted), settings_.min_nodes, settings_.max_nodes};
    hello.resumes = resumes;
    hello.round = round;
    auto refused = host_.join(hello, at(now_));
    if (!refused) alive_.insert(name);
    if (refused) return refused->why;
    go(0);
    return "";
  }
  void say(const std::string& name, const Message& message) {
    host_.receive(name, message, at(now_));
    go(0);
  }
  void end(const std::string& name, int code, bool stopped = false) {
    Ended ended{.round = round(name), .succeeded = code == 0 && !stopped, .failed = code != 0, .code = code};
    ended.cause = name + " failed";
    ended.step = step;
    ended.forbids_retry = code == 93;
    stops.erase(name);
    say(name, ended);
  }
  /// All nodes that were told to stop say that they have.
  void all_stop() {
    auto told = stops;
    for (const auto& [name, why] : told)
      if (alive_.contains(name)) end(name, 0, true);
  }
  void cut(const std::string& name) {
    break_connection(name);
    host_.settle(name, Host::Fate::ended, at(now_));
  }
  void break_connection(const std::string& name) {
    alive_.erase(name);
    host_.cut(name, at(now_));
  }
  void silence(const std::string& name) { alive_.erase(name); }
  /// Time passes, in which those that live send beats.
  void go(double seconds) {
    double until = now_ + seconds;
    do {
      now_ = std::min(until, now_ + 0.1);
      for (const auto& name : std::set<std::string>(alive_)) host_.receive(name, Beat{}, at(now_));
      host_.tick(at(now_));
      deliver();
    } while (now_ < until);
  }

  int round(const std::string& name) const { return starts.contains(name) ? starts.at(name).roster.round : -1; }
  std::string order() const {
    std::string text;
    for (const auto& node : starts.begin()->second.roster.nodes) text += node.id + " ";
    return text;
  }
  std::size_t players() const { return starts.empty() ? 0 : starts.begin()->second.roster.nodes.size(); }

  std::map<std::string, Start> starts;  // the last of each node
  std::map<std::string, std::string> stops;
  std::map<std::string, Finish> ends;
  std::set<std::string> spares;
  std::map<std::string, std::vector<std::string>> unreachable;  // what a node cannot reach
  std::string port_problem;
  long long step = -1;
  Host& host() { return host_; }

 private:
  static Time at(double seconds) { return Time(in_clock(1000 + seconds)); }
  void deliver() {
    for (auto all = host_.take_outgoing(); !all.empty(); all = host_.take_outgoing()) {
      for (const auto& [to, message] : all) {
        if (auto* prepare = std::get_if<Prepare>(&message); prepare && alive_.contains(to)) {
          Prepared prepared{.round = prepare->round};
          for (const auto& address : prepare->first.addresses)
            if (std::count(unreachable[to].begin(), unreachable[to].end(), address))
              prepared.failed.push_back(address + ": no route");
            else
              prepared.reached.push_back(address);
          if (to == prepare->first.id) prepared.port = 4321, prepared.problem = port_problem;
          host_.receive(to, prepared, at(now_));
        }
        if (auto* start = std::get_if<Start>(&message)) starts[to] = *start, stops.erase(to), spares.erase(to);
        if (auto* stop = std::get_if<Stop>(&message)) stops[to] = stop->reason;
        if (auto* finish = std::get_if<Finish>(&message)) ends[to] = *finish;
        if (std::holds_alternative<Spare>(message)) spares.insert(to);
      }
      host_.tick(at(now_));
    }
  }

  Settings settings_;
  double now_ = 0;
  std::set<std::string> alive_;
  Host host_;
};

/// A job in its first round.
Play running(const Settings& settings, int nodes) {
  Play play(settings);
  for (int i = 1; i <= nodes; ++i) play.join("a" + std::to_string(i));
  play.go(settings.timing.last_call + 1);
  REQUIRE(play.players() == static_cast<std::size_t>(nodes));
  REQUIRE(play.round("a1") == 0);
  return play;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a fixed number of nodes starts when all are there, by wanted rank", "[host]") {
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

TEST_CASE("one deadline for joining; who did not come is named", "[host]") {
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

TEST_CASE("an elastic job waits the last call out, and no longer than for MAX", "[host]") {
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

TEST_CASE("nodes that come late share one restart, which is not charged", "[host]") {
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

TEST_CASE("spares beyond MAX wait and take the place of one that is gone", "[host]") {
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

TEST_CASE("too many at the first round: the others are spares", "[host]") {
  Play play(some(2, 2));
  play.join("a1"), play.join("a2");
  CHECK(play.players() == 2);
  auto elastic = running(some(1, 2), 2);
  elastic.join("a3"), elastic.join("a4");
  elastic.go(3);
  CHECK(elastic.spares.size() == 2);
}

TEST_CASE("a failure stops all nodes and is charged once; counters are equal", "[host]") {
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

TEST_CASE("do not retry and no progress hold for all nodes", "[host]") {
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

TEST_CASE("success takes all nodes; one that has ended waits for the others", "[host]") {
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

TEST_CASE("a silent node counts as gone after three intervals, a busy one later", "[host]") {
  auto play = running(some(1, 2), 2);
  play.silence("a2");
  play.go(2.8);
  CHECK(play.stops.empty());
  play.go(0.4);
  REQUIRE(play.stops.contains("a1"));
  CHECK(has(play.stops["a1"], "silent for 3.0 s"));
  play.all_stop();
  CHECK(play.players() == 1);
  CHECK(has(play.join("a2", -1, true, 0), "declared gone"));
  auto busy = running(some(1, 2), 2);
  busy.say("a2", Busy{8});
  busy.silence("a2");  // one more beat may have come
  busy.go(7.5);
  CHECK(busy.stops.empty());
  busy.go(1);
  CHECK(busy.stops.contains("a1"));
}

TEST_CASE("a broken connection that comes back at once is nothing", "[host]") {
  auto play = running(some(1, 2), 2);
  play.break_connection("a2");
  play.go(0.2);
  REQUIRE(play.host().take_doubts().size() == 1);
  play.host().settle("a2", Host::Fate::lives, Time(in_clock(1000)));
  play.go(0.2);
  CHECK(play.join("a2", -1, true, 0).empty());
  play.go(5);
  CHECK(play.stops.empty());
  // One that lives and stays away is silent in the end.
  play.break_connection("a2");
  play.host().settle("a2", Host::Fate::lives, Time(in_clock(1000)));
  play.go(2.5);
  CHECK(play.stops.empty());
  play.go(1);
  CHECK(play.stops.contains("a1"));
}

TEST_CASE("a host whose nodes went over to another while it slept gives up", "[host]") {
  auto play = running(some(1, 3), 3);
  play.break_connection("a2");
  play.break_connection("a3");
  play.host().settle("a2", Host::Fate::moved, Time(in_clock(1000)));
  play.go(0.1);
  REQUIRE(play.ends.contains("a1"));
  CHECK(play.ends["a1"].code == 95);
  CHECK(has(play.ends["a1"].reason, "another host"));
}

TEST_CASE("too few nodes left: the job ends within seconds and says who is gone", "[host]") {
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

TEST_CASE("a failure beside the loss of a node does not count", "[host]") {
  auto play = running(some(1, 2), 2);  // no restart is allowed
  play.end("a1", 1);                   // its peer is gone, which shows a moment later
  play.cut("a2");
  play.go(1);
  CHECK(play.ends.empty());
  CHECK(play.players() == 1);
  CHECK(play.starts["a1"].roster.charged == 0);
}

TEST_CASE("after silence only the greater part goes on", "[host]") {
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

TEST_CASE("rank 0's address is one that all nodes reach; else the tried ones are named", "[host]") {
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

TEST_CASE("nodes with other limits are refused", "[host]") {
  Play play(some(2, 3));
  CHECK(has(play.host().join(Hello{"", named("a2"), 1, 3}, Time(in_clock(1000)))->why, "--nnodes 2:3"));
}

TEST_CASE("a new host goes on where the old one was", "[host]") {
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
