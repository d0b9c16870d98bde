// `fabric run` on machines that are network namespaces: cables that are pulled, slow lines, addresses that lead
// nowhere.
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <memory>

#include "tests/ranks/network_support.h"
#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Job;
using run_support::Network;
using run_support::now;

namespace {

using Words = std::vector<std::string>;

bool has_network() {
  static const std::string why = Network::why_not();
  if (!why.empty()) WARN("skipped: " + why);
  return why.empty();
}

const std::string kPlace =
    "echo r$RANK/$WORLD_SIZE g$GROUP_RANK a$TORCHELASTIC_RESTART_COUNT at $MASTER_ADDR:$MASTER_PORT; ";
const std::string kWait = kPlace + "exec sleep 100";
constexpr double kInterval = 0.6;

struct Machine {
  std::string name, hosts;  // hosts: its /etc/hosts
  Words flags;
};

/// One launcher on each machine of a network.
class Cluster {
 public:
  Cluster(Network& network, const std::string& nnodes, const std::string& script, const std::string& endpoint = "")
      : network_(network),
        nnodes_(nnodes),
        script_(script),
        endpoint_(endpoint.empty() ? network.address(0) + ":29400" : endpoint) {}
  Job& start(int node, const Machine& machine = {}) {
    Words words{"run",
                "--nnodes",
                nnodes_,
                "--rdzv-endpoint",
                endpoint_,
                "--rdzv-id",
                "x",
                "--grace",
                "0.3",
                "--rdzv-conf",
                "last_call_timeout=0.3,late_join_delay=0.2,join_timeout=20,connect_timeout=1,heartbeat_interval=" +
                    std::to_string(kInterval)};
    words.insert(words.end(), machine.flags.begin(), machine.flags.end());
    words.insert(words.end(), {"sh", "-c", script_});
    auto name = machine.name.empty() ? "m" + std::to_string(node) : machine.name;
    jobs_.push_back(std::make_unique<Job>(words, run_support::Variables{}, network_.enter(node, name, machine.hosts)));
    return *jobs_.back();
  }

 private:
  Network& network_;
  std::string nnodes_, script_, endpoint_;
  std::vector<std::unique_ptr<Job>> jobs_;
};

/// The machine is gone: nothing that its kernel says about dead processes arrives anywhere.
void lose_machine(Network& network, int node, Job& job) {
  network.cut(node);
  job.signal(SIGKILL);
}

}  // namespace

TEST_CASE("a machine is gone: the others act within three heartbeat intervals", "[network]") {
  if (!has_network()) return;
  Network network(3);
  for (const char* nnodes : {"1:3", "3"}) {
    INFO(nnodes);
    Cluster cluster(network, nnodes, kWait);
    auto& a = cluster.start(0);
    REQUIRE(a.wait_for("nodes are here"));
    auto &b = cluster.start(1), &c = cluster.start(2);
    REQUIRE(a.wait_for("r0/3"));
    REQUIRE(b.wait_for("r1/3"));
    REQUIRE(c.wait_for("r2/3"));
    auto begin = now();
    lose_machine(network, 2, c);
    REQUIRE(a.wait_for("stopping the workers"));
    CHECK(now() - begin <= 3 * kInterval + 0.3);
    if (std::string(nnodes) == "3") {
      for (auto* job : {&a, &b}) {
        auto result = job->finish();
        CHECK(result.code == 95);
        CHECK(result.said("m2 (launcher "));
        CHECK(result.left.empty());
      }
    } else {
      CHECK(a.wait_for("r0/2 g0 a1"));
      CHECK(b.wait_for("r1/2 g1 a1"));
    }
    network.heal(2);
  }
}

TEST_CASE("the machine of the host is gone: the greater part goes on, one of two fails and names it", "[network]") {
  if (!has_network()) return;
  Network network(3);
  {
    Cluster cluster(network, "1:3", kWait);
    auto& a = cluster.start(0);
    REQUIRE(a.wait_for("nodes are here"));
    auto &b = cluster.start(1), &c = cluster.start(2);
    REQUIRE(c.wait_for("r2/3"));
    lose_machine(network, 0, a);
    // Which of the two hosts, and after how many tries, depends on how busy this machine is.
    bool goes_on = b.wait_for("/2 g") && c.wait_for("/2 g");
    INFO(b.error_so_far() << c.error_so_far());
    CHECK(goes_on);
    network.heal(0);
  }
  Cluster cluster(network, "1:2", kWait);
  auto& a = cluster.start(0);
  REQUIRE(a.wait_for("nodes are here"));
  auto& b = cluster.start(1);
  REQUIRE(b.wait_for("r1/2"));
  lose_machine(network, 0, a);
  auto result = b.finish();
  CHECK(result.code == 95);
  CHECK(result.said("m0 (launcher "));
  CHECK(result.said("majority"));
  CHECK(result.left.empty());
}

TEST_CASE("a launcher that is started again at the endpoint joins the job that lives on elsewhere", "[network]") {
  if (!has_network()) return;
  Network network(2);
  Cluster cluster(network, "1:2", kWait);
  auto& a = cluster.start(0);
  REQUIRE(a.wait_for("nodes are here"));
  auto& b = cluster.start(1);
  REQUIRE(b.wait_for("r1/2"));
  a.signal(SIGKILL);
  REQUIRE(b.wait_for("r0/1 g0 a1"));
  // Long enough for the other to knock.
  auto& again = cluster.start(0, {"", "", {"--rdzv-conf", "last_call_timeout=4,heartbeat_interval=0.6"}});
  CHECK(again.wait_for("the job lives on under another host, m1"));
  CHECK(again.wait_for("r0/2 g0 a2"));
  CHECK(b.wait_for("r1/2 g1 a2"));
}

TEST_CASE("a short cut is borne, a long one ends the part that is cut off", "[network]") {
  if (!has_network()) return;
  Network network(2);
  Cluster cluster(network, "1:2", kWait);
  auto& a = cluster.start(0);
  REQUIRE(a.wait_for("nodes are here"));
  auto& b = cluster.start(1);
  REQUIRE(b.wait_for("r1/2"));
  network.cut(1);
  usleep(static_cast<useconds_t>(kInterval * 1e6));
  network.heal(1);
  usleep(static_cast<useconds_t>(4 * kInterval * 1e6));
  CHECK(a.processes().size() >= 2);
  CHECK(b.processes().size() >= 2);
  network.cut(1);
  auto begin = now();
  CHECK(a.wait_for("r0/1 g0 a1"));
  CHECK(now() - begin < 3 * kInterval + 1.5);
  auto result = b.finish();
  CHECK(result.code == 95);
  CHECK(result.said("m0 (launcher "));
  network.heal(1);
  // The healed machine may come again, as a late node.
  auto& again = cluster.start(1);
  CHECK(again.wait_for("r1/2 g1 a2"));
  CHECK(a.wait_for("r0/2 g0 a2"));
}

TEST_CASE("who alone cannot reach the host, which the others do, ends in time and without a flood of lines",
          "[network]") {
  if (!has_network()) return;
  Network network(3);
  Cluster cluster(network, "1:3", kWait);
  Machine short_of_time{.flags = {"--rdzv-conf",
                                  "last_call_timeout=0.3,late_join_delay=0.2,join_timeout=5,connect_timeout=1,"
                                  "heartbeat_interval=" +
                                      std::to_string(kInterval)}};
  auto& a = cluster.start(0, short_of_time);
  REQUIRE(a.wait_for("nodes are here"));
  auto& b = cluster.start(1, short_of_time);
  REQUIRE(b.wait_for("r1/2"));
  auto& c = cluster.start(2, short_of_time);
  REQUIRE(c.wait_for("r2/3"));
  network.part(0, 2);
  auto result = c.finish();
  CHECK(result.code == 95);
  std::size_t told = 0;
  for (auto at = result.error.find("is the next to host"); at != result.error.npos;
       at = result.error.find("is the next to host", at + 1))
    ++told;
  CHECK(told < 60);
  CHECK(b.wait_for("r1/2 g1 a"));
}

TEST_CASE("a slow line delays everything and breaks nothing", "[network]") {
  if (!has_network()) return;
  Network network(2);
  network.slow_down(1);
  Cluster cluster(network, "2", kPlace + "sleep 2");
  auto &a = cluster.start(0), &b = cluster.start(1);
  auto first = a.finish(), second = b.finish();
  INFO(first.error << second.error);
  CHECK(first.code == 0);
  CHECK(second.code == 0);
  CHECK(second.lines("r1/2 g1 a0").size() == 1);
}

TEST_CASE("names that resolve to 127.0.1.1, IPv6 alone, two interfaces", "[network]") {
  if (!has_network()) return;
  if (auto why = Network::why_no_hosts(); !why.empty()) {
    WARN("names are skipped: " + why);
  } else {
    Network network(2);
    // Each machine knows its own name as Debian has it.
    Cluster cluster(network, "2", kPlace, "alpha:29400");
    auto &a = cluster.start(0, {"alpha", "127.0.0.1 localhost\n127.0.1.1 alpha\n", {}}),
         &b = cluster.start(1, {"beta", "127.0.0.1 localhost\n127.0.1.1 beta\n10.77.0.1 alpha\n", {}});
    auto first = a.finish(), second = b.finish();
    INFO(first.error << second.error);
    CHECK(first.code == 0);
    CHECK(second.code == 0);
    CHECK(second.lines("at 10.77.0.1:").size() == 1);
    // A name that leads to itself: the error names what was tried.
    Cluster wrong(network, "2", kPlace, "alpha:29400");
    auto result =
        wrong.start(1, {"beta", "127.0.0.1 localhost\n127.0.1.1 alpha\n", {"--rdzv-conf", "join_timeout=1,is_host=0"}})
            .finish();
    CHECK(result.code == 95);
    CHECK(result.said("127.0.1.1:29400: Connection refused"));
  }
  {
    Network network(2, Network::v6_only);
    Cluster cluster(network, "2", kPlace, "[fd77::1]:29400");
    auto &a = cluster.start(0), &b = cluster.start(1);
    CHECK(a.finish().code == 0);
    auto result = b.finish();
    CHECK(result.code == 0);
    CHECK(result.lines("at fd77::1:").size() == 1);
  }
  Network network(2);
  network.add_dead_interface(0, "10.99.0.1/24");
  for (int dead_first : {0, 1}) {
    Cluster cluster(network, "2", kPlace);
    // Node 0 publishes both addresses, or only the one that leads nowhere.
    Machine machine;
    if (dead_first) machine.flags = {"--iface", "dead0"};
    auto &a = cluster.start(0, machine), &b = cluster.start(1);
    auto first = a.finish(), second = b.finish();
    INFO(first.error << second.error);
    if (!dead_first) {
      CHECK(first.code == 0);
      CHECK(second.lines("at 10.77.0.1:").size() == 1);
    } else {
      CHECK(first.code == 95);
      CHECK(second.code == 95);
      CHECK(second.said("10.99.0.1:29400"));
      CHECK(second.said("--iface or --local-addr"));
    }
  }
}
