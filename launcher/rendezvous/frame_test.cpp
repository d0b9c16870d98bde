// What goes over the wire, and the settings and rules that need no network.
#include "launcher/rendezvous/frame.h"

#include <netinet/in.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "launcher/rendezvous/addresses.h"
#include "launcher/rendezvous/connection.h"
#include "launcher/rendezvous/election.h"
#include "launcher/rendezvous/message.h"
#include "launcher/rendezvous/server.h"
#include "launcher/rendezvous/settings.h"
#include "tests/support/catch.h"

using namespace fabric::rendezvous;
using fabric::ConfigError;
using fabric::Tree;

namespace {

NodeInfo node(const std::string& id, const std::string& host, int wanted = -1) {
  NodeInfo made;
  made.id = id;
  made.host = host;
  made.pid = 7;
  made.wanted_rank = wanted;
  made.addresses = {"10.0.0.1", "fd00::1"};
  made.port = 29400;
  return made;
}

const Key kKey = mac("secret", {"frames"});

Message through_wire(const Message& message) {
  FrameReader reader(kKey);
  auto bytes = FrameWriter(kKey).encode(to_tree(message));
  for (char byte : bytes) {
    CHECK_FALSE(reader.next());
    reader.feed({&byte, 1});
  }
  return to_message(*reader.next());
}

std::string frame(const std::string& text) { return seal(kKey, 0, text); }

std::string problem_of(const std::string& bytes) {
  FrameReader reader(kKey);
  reader.feed(bytes);
  try {
    auto tree = reader.next();
    if (!tree) return "incomplete";
    to_message(*tree);
    return "";
  } catch (const FrameError& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("messages arrive as they were sent, byte by byte too", "[frames]") {
  Start start;
  start.roster.round = 3;
  start.roster.run_id = "a job";
  start.roster.nodes = {node("a", "n1", 1), node("b", "n2")};
  start.roster.best_step = 1LL << 40;
  start.master_addr = "fd00::1";
  start.master_port = 1234;
  auto back = std::get<Start>(through_wire(start));
  CHECK(back.roster.nodes.size() == 2);
  CHECK(back.roster.nodes[0].addresses == start.roster.nodes[0].addresses);
  CHECK(back.roster.nodes[0].wanted_rank == 1);
  CHECK(back.roster.best_step == 1LL << 40);
  CHECK(back.master_addr == "fd00::1");
  Ended ended{.round = 2, .failed = true, .code = 139, .cause = "raw \xff bytes", .report = "two\nlines"};
  auto end = std::get<Ended>(through_wire(ended));
  CHECK(end.code == 139);
  CHECK(end.cause == "raw ? bytes");
  CHECK(end.report == "two\nlines");
  CHECK(std::holds_alternative<Beat>(through_wire(Beat{})));
}

TEST_CASE("bytes that are no message of ours are errors", "[frames]") {
  CHECK(problem_of("GET / HTTP/1.1\r\n").find("longer than") != std::string::npos);
  CHECK(problem_of("\0") == "incomplete");
  CHECK(problem_of(std::string("\xff\xff\xff\xff", 4)).find("longer than") != std::string::npos);
  for (const char* text :
       {"", "[]", "3", "{", "{\"type\":\"who\"", "{}", R"({"type":7})", R"({"type":"nothing"})", R"({"type":"moved"})",
        R"({"type":"hello","node":[]})", R"({"type":"leave","signal":"1"})", R"({"type":"leave","signal":0})",
        R"({"type":"leave","signal":99999999999})", R"({"type":"ended","round":0})", "\xff\xfe"}) {
    INFO(text);
    CHECK_FALSE(problem_of(frame(text)).empty());
    CHECK(problem_of(frame(text)) != "incomplete");
  }
  auto bad_port = node("a", "n");
  bad_port.port = 70000;
  CHECK_THROWS_AS(to_message(to_tree(Prepare{0, bad_port})), FrameError);
  std::string deep(3000, '[');
  CHECK_FALSE(problem_of(frame("{\"type\":" + deep)).empty());
}

TEST_CASE("what was changed, repeated, reordered or left out on the way is no message", "[frames]") {
  FrameWriter writer(kKey);
  std::string frames[3];
  for (auto& one : frames) one = writer.encode(to_tree(Leave{15}));
  auto last_problem = [&](std::vector<std::string> sent, const Key& key = kKey) -> std::string {
    FrameReader reader(key);
    for (const auto& bytes : sent) reader.feed(bytes);
    try {
      while (reader.next()) continue;
    } catch (const FrameError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(last_problem({frames[0], frames[1], frames[2]}).empty());
  auto changed = frames[0];
  changed[changed.find("15")] = '0';
  for (const auto& sent : std::vector<std::vector<std::string>>{
           {changed}, {frames[1]}, {frames[0], frames[0]}, {frames[0], frames[2]}, {frames[1], frames[0]}})
    CHECK(last_problem(sent).find("changed on its way") != std::string::npos);
  CHECK(last_problem({frames[0]}, Key{}).find("changed on its way") != std::string::npos);
}

TEST_CASE("a failure never has the code 0, and an end without failure no cause", "[frames]") {
  Ended ended{.round = 0, .failed = true, .code = 0};
  CHECK_THROWS_AS(through_wire(ended), FrameError);
  ended.code = 7;
  CHECK(std::get<Ended>(through_wire(ended)).code == 7);
  ended.succeeded = true;
  CHECK_THROWS_AS(through_wire(ended), FrameError);
  CHECK_THROWS_AS(through_wire(Finish{0, "because", "", "", ""}), FrameError);
  CHECK_THROWS_AS(through_wire(Finish{256, "", "", "", ""}), FrameError);
  CHECK(std::get<Finish>(through_wire(Finish{})).code == 0);
}

TEST_CASE("a number that is none is no message", "[frames]") {
  auto tree = to_tree(Message(Welcome{.host_id = "a"}));
  for (const char* bad : {"nan", "inf"}) {
    INFO(bad);
    bool had_a_number = false;
    for (const auto& [key, item] : tree.as_map())
      if (item.is_double()) {
        had_a_number = true;
        auto changed = tree;
        changed[key] = std::strtod(bad, nullptr);
        CHECK_THROWS_AS(to_message(changed), FrameError);
      }
    CHECK(had_a_number);
  }
}

TEST_CASE("--rdzv-conf", "[settings]") {
  auto timing = parse_timing("join_timeout=60,heartbeat_interval=0.5,heartbeat_misses=4,is_host=true,majority=false");
  CHECK(timing.join == 60);
  CHECK(timing.silence_limit() == std::chrono::milliseconds(1900));
  CHECK(timing.is_host == true);
  CHECK_FALSE(timing.majority);
  CHECK(parse_timing("keep_alive_interval=2,keep_alive_max_attempt=5").silence_limit() ==
        std::chrono::milliseconds(9600));
  CHECK(parse_timing("timeout=7,store_type=tcp,").join == 7);
  CHECK(parse_timing("").silence_limit() == std::chrono::milliseconds(14000));
  for (const char* wrong : {"join_timeout=x", "join_timeout=-1", "join_timeout", "join=3", "is_host=maybe",
                            "heartbeat_interval=nan", "heartbeat_misses=0"}) {
    INFO(wrong);
    CHECK_THROWS_AS(parse_timing(wrong), ConfigError);
  }
  try {
    parse_timing("join_timeot=3");
  } catch (const ConfigError& error) {
    CHECK(std::string(error.what()).find("did you mean 'join_timeout'?") != std::string::npos);
  }
}

TEST_CASE("the order of group ranks follows from the nodes alone", "[election]") {
  CHECK(comes_before(node("b", "n2"), node("a", "n10")));
  CHECK(comes_before(node("b", "z", 0), node("a", "a")));
  CHECK(comes_before(node("b", "z", 1), node("a", "a", 2)));
  CHECK(comes_before(node("a", "n"), node("b", "n")));
  CHECK_FALSE(comes_before(node("a", "n"), node("a", "n")));
}

TEST_CASE("the next host, and which part of a cut job goes on", "[election]") {
  Roster roster;
  roster.host_id = "c";
  roster.nodes = {node("a", "n1"), node("b", "n2"), node("c", "n3"), node("d", "n4")};
  roster.spares = {node("s", "n5")};
  CHECK(next_host(roster, {})->id == "c");
  CHECK(next_host(roster, {{"c", true}})->id == "a");
  CHECK(next_host(roster, {{"c", true}, {"a", false}, {"b", true}, {"d", false}})->id == "s");
  CHECK_FALSE(next_host(roster, {{"c", true}, {"a", true}, {"b", true}, {"d", true}, {"s", true}}));
  // Two and two: the half of the host goes on.
  CHECK(has_quorum(roster, {{"a", false}, {"b", false}}, {"c", "d"}));
  CHECK_FALSE(has_quorum(roster, {{"c", false}, {"d", false}}, {"a", "b"}));
  // The host certainly ended: two of three that may live.
  CHECK(has_quorum(roster, {{"c", true}, {"d", false}}, {"a", "b"}));
  CHECK_FALSE(has_quorum(roster, {{"c", true}, {"a", false}, {"b", false}}, {"d"}));
  // All others certainly ended.
  CHECK(has_quorum(roster, {{"a", true}, {"b", true}, {"c", true}}, {"d"}));
  // Spares do not count.
  CHECK_FALSE(has_quorum(roster, {{"c", false}, {"a", false}, {"b", false}}, {"d", "s"}));
}

TEST_CASE("addresses", "[addresses]") {
  std::string problem;
  CHECK(resolve("127.0.0.1", std::chrono::seconds(1), problem) == std::vector<std::string>{"127.0.0.1"});
  CHECK(resolve("::1", std::chrono::seconds(1), problem) == std::vector<std::string>{"::1"});
  CHECK_FALSE(resolve("localhost", std::chrono::seconds(5), problem).empty());
  CHECK(resolve("no such host", std::chrono::seconds(5), problem).empty());
  CHECK(problem.find("no such host") != std::string::npos);
  CHECK(is_own_host("whatever", {"127.0.1.1"}));
  CHECK_FALSE(is_own_host("whatever", {"192.0.2.1"}));
  CHECK(with_port("fd00::1", 5) == "[fd00::1]:5");
  CHECK(resolve("fe80::1%lo", std::chrono::seconds(5), problem) == std::vector<std::string>{"fe80::1%lo"});
  auto scoped = socket_address("fe80::1%lo", 5);
  CHECK(reinterpret_cast<const sockaddr_in6*>(scoped.get())->sin6_scope_id == 1);
  CHECK(socket_address("fe80::1%no such link", 5).size == 0);
  auto all = own_addresses("", "");
  REQUIRE_FALSE(all.empty());
  CHECK(is_own_host("whatever", {all.front()}));
  CHECK(own_addresses("", "127.0.0.1") == std::vector<std::string>{"127.0.0.1"});
  CHECK(own_addresses("lo", "").front() == "127.0.0.1");
  CHECK_THROWS_AS(own_addresses("no0", ""), ConfigError);
}

TEST_CASE("of several that want a port at the same moment one gets it", "[connection]") {
  // Below the ports that connections are given; whoever else runs here may have some of them.
  int port = 20000 + getpid() % 10000;
  for (bool is_taken = true; is_taken; ++port) {
    is_taken = false;
    if (!listen_on({}, port, is_taken).empty()) break;
  }
  for (int round = 0; round < 300; ++round) {
    std::atomic<int> waiting{3}, got{0}, done{0};
    auto want = [&] {
      for (--waiting; waiting > 0;) {
      }
      bool is_taken = false;
      auto listeners = listen_on({}, port, is_taken);
      got += static_cast<int>(listeners.size());
      for (++done; done < 3;) std::this_thread::yield();
    };
    std::thread second(want), third(want);
    want();
    second.join(), third.join();
    REQUIRE(got == 1);
  }
}
