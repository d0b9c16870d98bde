// What strangers, false nodes and ends of connections can do to launchers that meet.
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include "tests/ranks/nodes_support.h"

using nodes_support::connect_and_send;
using nodes_support::kPlace;
using nodes_support::kWait;
using nodes_support::Nodes;
using nodes_support::Words;
using run_support::Folder;
using run_support::Job;
using run_support::now;
using run_support::read_file;
using run_support::require_clean;

namespace {

const std::string kSecret = "a secret of the tests";

/// The second implementation of the protocol, and what it printed.
struct Peer {
  Peer(int port, const std::string& deed, const std::string& secret = kSecret) {
    auto line =
        "python3 '" FABRIC_RENDEZVOUS_PEER "' " + std::to_string(port) + " '" + secret + "' 'a job' " + deed + " 2>&1";
    pipe = popen(line.c_str(), "r");
  }
  std::string finish() {
    std::string text;
    char buffer[4096];
    while (fgets(buffer, sizeof buffer, pipe)) text += buffer;
    pclose(pipe);
    return text;
  }
  FILE* pipe;
};

/// Seconds of processor time that a process has used; -1 when it is gone.
double processor_seconds(pid_t pid) {
  std::istringstream numbers(read_file("/proc/" + std::to_string(pid) + "/schedstat"));
  double nanoseconds = -1;
  numbers >> nanoseconds;
  return nanoseconds < 0 ? -1 : nanoseconds * 1e-9;
}

/// A minute where somebody asks for it.
double long_or(double seconds) { return std::getenv("FABRIC_TEST_LONG") ? 60 : seconds; }

}  // namespace

TEST_CASE("ends of connections of every kind cost no processor time", "[attacks]") {
  Nodes nodes("1:3", kWait);
  nodes.conf = "heartbeat_interval=0.5,last_call_timeout=10,late_join_delay=0.2,join_timeout=15";
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("enough nodes are here"));
  // Before the round begins, so that whatever is forked for it has copies: silent, half a greeting, a whole one, gone.
  std::vector<int> open;
  auto opened = now();
  for (const auto& bytes : {std::string(), std::string("FAB2"), "FAB2" + std::string(32, 'n'), std::string("GET /"),
                            "FAB2" + std::string(64, 'n')})
    for (int i = 0; i < 4; ++i) open.push_back(connect_and_send(nodes.port(), bytes));
  for (std::size_t i = 0; i < open.size(); i += 4) close(std::exchange(open[i], -1));
  auto &b = nodes.start("b"), &c = nodes.start("c");
  for (auto* job : {&a, &b, &c}) REQUIRE(job->wait_for("/3 l0"));
  // A node that is stopped and counted out, with its connection open; then killed.
  c.signal(SIGSTOP);
  REQUIRE(a.wait_for("/2 l0"));
  REQUIRE(b.wait_for("/2 l0"));
  c.signal(SIGKILL);
  for (std::size_t i = 1; i < open.size(); i += 4) shutdown(open[i], SHUT_WR);
  for (std::size_t i = 2; i < open.size(); i += 4) {
    linger at_once{1, 0};  // the end is a reset
    setsockopt(open[i], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(std::exchange(open[i], -1));
  }
  while (now() < opened + 5.5) usleep(10000);  // the rest are dropped for their silence
  std::vector<pid_t> watched{a.pid(), a.guardian(), b.pid(), b.guardian()};
  std::vector<double> before;
  for (pid_t pid : watched) before.push_back(processor_seconds(pid));
  auto seconds = long_or(2);
  usleep(static_cast<useconds_t>(seconds * 1e6));
  for (std::size_t i = 0; i < watched.size(); ++i) {
    auto used = processor_seconds(watched[i]) - before[i];
    INFO("process " << i << " used " << used << " s in " << seconds << " s");
    CHECK(before[i] >= 0);
    CHECK(used < (run_support::kSanitized ? 0.1 : 0.01) * seconds);
  }
  for (int fd : open)
    if (fd >= 0) close(fd);
  for (auto* job : {&b, &a}) job->signal(SIGTERM);
  for (auto* job : {&b, &a}) require_clean(job->finish());
}

TEST_CASE("a launcher without room for a connection does not spin, and goes on when there is room", "[attacks]") {
  Nodes nodes("2", kWait);
  nodes.variables["FABRIC_RDZV_TOKEN"] = kSecret;
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 2 nodes"));
  rlimit before{}, none{};
  REQUIRE(prlimit(a.pid(), RLIMIT_NOFILE, nullptr, &before) == 0);
  none = before;
  none.rlim_cur = 3;
  REQUIRE(prlimit(a.pid(), RLIMIT_NOFILE, &none, nullptr) == 0);
  int waits = connect_and_send(nodes.port());
  auto used = processor_seconds(a.pid());
  usleep(1500000);
  CHECK(processor_seconds(a.pid()) - used < (run_support::kSanitized ? 0.3 : 0.05));
  REQUIRE(prlimit(a.pid(), RLIMIT_NOFILE, &before, nullptr) == 0);
  auto& b = nodes.start("b");
  CHECK(b.wait_for("r1/2"));
  close(waits);
  b.signal(SIGTERM);
  b.finish();
  require_clean(a.finish());
}

TEST_CASE("the protocol is as its page says: a node in another language takes part", "[attacks]") {
  Nodes nodes("2", kPlace);
  nodes.variables["FABRIC_RDZV_TOKEN"] = kSecret;
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 2 nodes"));
  CHECK(Peer(nodes.port(), "play", "another secret").finish() == "refused\n");
  auto said = Peer(nodes.port(), "play").finish();
  CHECK(said == "welcome \nprepare \nstart \nfinish 0\n");
  auto result = a.finish();
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.lines("r0/2").size() == 1);
}

TEST_CASE("a false node cannot end a job as if all were well, nor reach the terminal", "[attacks]") {
  Nodes nodes("2", kWait);
  nodes.variables["FABRIC_RDZV_TOKEN"] = kSecret;
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 2 nodes"));
  auto said = Peer(nodes.port(), "fail-with-0").finish();
  INFO(said);
  auto result = a.finish();
  INFO(result.error);
  require_clean(result);
  CHECK(result.code == 95);
  CHECK(result.said("a failure that is none"));
  CHECK(result.said("evil\\x1b[2J\\nfabric: all is well"));
  CHECK_FALSE(result.said("\x1b"));
  CHECK_FALSE(result.said("\nfabric: all is well"));
}

TEST_CASE("without the secret nobody redirects or joins a job, whatever the old protocol let them", "[attacks]") {
  Nodes nodes("2", kPlace);
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 2 nodes"));
  auto old = [](const std::string& text) {
    std::string frame = "FAB1";
    for (int shift = 24; shift >= 0; shift -= 8) frame += static_cast<char>(text.size() >> shift);
    return frame + text;
  };
  const std::string thief =
      R"({"id":"x","host":"thief","pid":1,"local_size":1,"wanted_rank":-1,"addresses":["127.0.0.1"],"port":1})";
  std::vector<int> open;
  for (std::string token : {"a job", ""})
    for (const auto& text : {R"({"type":"moved","token":")" + token + R"(","host":)" + thief + "}",
                             R"({"type":"hello","token":")" + token + R"(","node":)" + thief +
                                 R"(,"min_nodes":2,"max_nodes":2,"round":-1,"resumes":false})"})
      open.push_back(connect_and_send(nodes.port(), old(text)));
  // Nor whoever knows the name of the job: on one machine the secret is the user's.
  CHECK(Peer(nodes.port(), "play", "a job").finish() == "refused\n");
  CHECK(Peer(nodes.port(), "redirect", "").finish() == "refused\n");
  usleep(300000);
  auto& b = nodes.start("b");
  auto first = a.finish(), second = b.finish();
  INFO(first.error);
  CHECK(first.code == 0);
  CHECK(second.code == 0);
  CHECK(first.said("it is a launcher of another version"));
  CHECK(first.said("its secret or its job is another"));
  CHECK(second.lines("r1/2").size() == 1);
  for (int fd : open) close(fd);
}

TEST_CASE("whoever holds the port learns neither the secret nor the name of the job", "[attacks]") {
  int port = 0;
  int fd = nodes_support::listening_socket(port);
  Job job({"run", "--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:" + std::to_string(port), "--rdzv-id", "a job",
           "--rdzv-conf", "join_timeout=2,connect_timeout=1,is_host=false", "true"},
          {{"FABRIC_RDZV_TOKEN", kSecret}});
  std::string heard;
  pollfd entry{fd, POLLIN, 0};
  REQUIRE(poll(&entry, 1, 5000) == 1);
  int caller = accept(fd, nullptr, nullptr);
  auto greeting = "FAB2" + std::string(32, 'n');
  CHECK(send(caller, greeting.data(), greeting.size(), MSG_NOSIGNAL) == 36);
  char buffer[4096];
  for (ssize_t size; heard.size() < 68 && (size = recv(caller, buffer, sizeof buffer, 0)) > 0;)
    heard.append(buffer, static_cast<std::size_t>(size));
  auto lie = "Y" + std::string(32, 'p');
  CHECK(send(caller, lie.data(), lie.size(), MSG_NOSIGNAL) == 33);
  for (ssize_t size; (size = recv(caller, buffer, sizeof buffer, 0)) > 0;)
    heard.append(buffer, static_cast<std::size_t>(size));
  CHECK(heard.size() == 68);  // a nonce and a proof
  close(caller);
  close(fd);
  auto result = job.finish();
  CHECK(result.code == 95);
  CHECK(heard.find("secret") == std::string::npos);
  CHECK(heard.find("job") == std::string::npos);
}

TEST_CASE("an endpoint on the loopback is reached from this machine alone", "[attacks]") {
  Nodes nodes("2", kWait);
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 2 nodes"));
  int inside = connect_and_send(nodes.port());
  CHECK(inside >= 0);
  close(inside);
  CHECK(connect_and_send(nodes.port(), "", "127.0.0.2") < 0);  // another address of this machine
  a.signal(SIGTERM);
  auto result = a.finish();
  CHECK_FALSE(result.said("no secret"));
  // Beyond it, without a secret, it says so; with one it does not.
  Nodes open("2", kWait, {"--iface", "lo"});
  auto& b = open.start("b");
  REQUIRE(b.wait_for("this job has no secret, and whoever reaches port " + std::to_string(open.port())));
  int other = connect_and_send(open.port(), "", "127.0.0.2");
  CHECK(other >= 0);
  close(other);
  b.signal(SIGTERM);
  b.finish();
  Nodes closed("2", kWait, {"--iface", "lo"});
  closed.variables["FABRIC_RDZV_TOKEN"] = kSecret;
  auto& c = closed.start("c");
  REQUIRE(c.wait_for("1 of 2 nodes"));
  c.signal(SIGTERM);
  CHECK_FALSE(c.finish().said("no secret"));
}

TEST_CASE("workers do not inherit the secret, and the launcher's environment does not show it", "[attacks]") {
  auto count_in = [](const std::string& pid) {
    return "tr '\\0' '\\n' < /proc/" + pid + "/environ | grep -c '" + kSecret + "'; ";
  };
  auto script = "env | grep -c RDZV; " + count_in("$PPID") + "launcher=$(cut -d' ' -f4 /proc/$PPID/stat); " +
                count_in("$launcher") + "exit 0";
  auto alone = run_support::run(run_support::shell(1, script), {{"FABRIC_RDZV_TOKEN", kSecret}});
  CHECK(alone.lines() == Words{"0", "0", "0"});
  Nodes nodes("2", script);
  nodes.variables["FABRIC_RDZV_TOKEN"] = kSecret;
  auto &a = nodes.start("a"), &b = nodes.start("b");
  CHECK(a.finish().lines() == Words{"0", "0", "0"});
  CHECK(b.finish().lines() == Words{"0", "0", "0"});
}

TEST_CASE("a launcher that was stopped while ranks ended says what the other nodes say", "[attacks]") {
  for (bool host_stops : {true, false}) {
    INFO("the host stops: " << host_stops);
    Folder folder;
    Nodes nodes("2", kPlace + "while [ ! -e " + folder.path() + "/go ]; do sleep 0.02; done");
    auto& a = nodes.start("a");
    REQUIRE(a.wait_for("1 of 2 nodes"));
    auto& b = nodes.start("b");
    REQUIRE(a.wait_for("r0/2"));
    REQUIRE(b.wait_for("r1/2"));
    auto &sleeper = host_stops ? a : b, &other = host_stops ? b : a;
    sleeper.signal(SIGSTOP);
    std::ofstream(folder / "go") << "now";
    auto result = other.finish();
    CHECK(result.code == 95);
    sleeper.signal(SIGCONT);
    auto woken = sleeper.finish();
    INFO(woken.error);
    CHECK(woken.code == 95);
  }
}

TEST_CASE("the connections that strangers may hold are part of the descriptors that a launcher asks for", "[attacks]") {
  auto result = run_support::run(
      {"run", "--nnodes", "2", "--rdzv-endpoint", "localhost:9", "--rdzv-conf", "is_host=false,join_timeout=1", "true"},
      {}, [] {
        rlimit limit{150, 150};
        setrlimit(RLIMIT_NOFILE, &limit);
      });
  require_clean(result);
  CHECK(result.code == 125);
  CHECK(result.said("raise it with ulimit -n"));
}
