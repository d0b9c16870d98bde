// `fabric run` on several nodes: several launchers on this machine.
#include <signal.h>
#include <unistd.h>

#include <memory>

#include <fabric/base/tree_io.h>

#include "tests/ranks/nodes_support.h"

using nodes_support::kPlace;
using nodes_support::kWait;
using nodes_support::listening_socket;
using nodes_support::Nodes;
using nodes_support::Words;
using run_support::Folder;
using run_support::Job;
using run_support::now;
using run_support::read_file;
using run_support::require_clean;
using run_support::Result;

TEST_CASE("nodes get ranks by wanted rank or name, whatever the order in which they come", "[nodes]") {
  Nodes nodes("2", kPlace + "echo at $MASTER_ADDR:$MASTER_PORT id $TORCHELASTIC_RUN_ID");
  auto& b = nodes.start("b", {}, 3);
  auto& a = nodes.start("a", {}, 2);
  auto first = a.finish(), second = b.finish();
  require_clean(first);
  require_clean(second);
  INFO(first.error << second.error);
  REQUIRE(first.code == 0);
  REQUIRE(second.code == 0);
  CHECK(first.lines("r") == Words{"r0/5 l0 g0/2 a0", "r1/5 l1 g0/2 a0"});
  CHECK(second.lines("r") == Words{"r2/5 l0 g1/2 a0", "r3/5 l1 g1/2 a0", "r4/5 l2 g1/2 a0"});
  CHECK(first.lines("at ").front() == second.lines("at ").front());
  CHECK(first.lines("at ").front().ends_with(" id a job"));
}

TEST_CASE("torchrun's static way: --master-addr, --master-port, --node-rank", "[nodes]") {
  auto port = std::to_string(free_port());
  auto words = [&](const char* rank) {
    return Words{"run",       "--nnodes",      "2",  "--node-rank", rank, "--master-addr",
                 "127.0.0.1", "--master-port", port, "sh",          "-c", kPlace + "echo port $MASTER_PORT"};
  };
  Job one(words("1")), zero(words("0"));
  auto first = zero.finish(), second = one.finish();
  CHECK(first.code == 0);
  CHECK(first.lines("l0") == Words{"r0/2 l0 g0/2 a0"});
  CHECK(second.lines("l0") == Words{"r1/2 l0 g1/2 a0"});
  CHECK(first.lines("port") == second.lines("port"));
  CHECK(first.lines("port").front() != "port " + port);
}

TEST_CASE("a failure on one node restarts all, with one counter and one budget", "[nodes]") {
  const std::string script = kPlace +
                             "[ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && { sleep 0.3; exit 7; }; "
                             "[ $TORCHELASTIC_RESTART_COUNT = 2 ] || exec sleep 100";
  Nodes nodes("2", script, {"--max-restarts", "2"});
  auto &a = nodes.start("a"), &b = nodes.start("b");
  auto first = a.finish(), second = b.finish();
  require_clean(first);
  require_clean(second);
  INFO(first.error << second.error);
  CHECK(first.code == 0);
  CHECK(second.code == 0);
  CHECK(first.lines("r0") == Words{"r0/2 l0 g0/2 a0", "r0/2 l0 g0/2 a1", "r0/2 l0 g0/2 a2"});
  CHECK(second.lines("r1") == Words{"r1/2 l0 g1/2 a0", "r1/2 l0 g1/2 a1", "r1/2 l0 g1/2 a2"});
  CHECK(first.said("rank 1 (local rank 0 on b, pid"));
  CHECK(second.said("ended with exit code 7"));
}

TEST_CASE("a node is not silent while a slow debugger looks at its rank that hangs", "[nodes]") {
  Folder folder;
  run_support::write_script(folder / "eu-stack", "sleep 4; echo '#0 in_a_loop'");
  for (const char* rank : {"0", "1"}) {
    INFO("rank " << rank);
    Nodes nodes(
        "2", std::string("[ $RANK = ") + rank + " ] && echo 'section load 0.2' >&$FABRIC_HEARTBEAT_FD; exec sleep 100");
    nodes.variables["PATH"] = folder.path() + ":/usr/bin:/bin";
    auto& a = nodes.start("a");
    auto& b = nodes.start("b");
    auto first = a.finish(), second = b.finish();
    INFO(first.error << second.error);
    for (const auto& result : {first, second}) {
      require_clean(result);
      CHECK(result.code == 94);
      CHECK(result.said("section 'load'"));
    }
    CHECK(first.said("in_a_loop"));
  }
}

TEST_CASE("hangs, the end of the budget, no retry and no progress hold for all nodes", "[nodes]") {
  Folder folder;
  struct Case {
    std::string script;
    Words flags;
    int code;
    std::string said;
  };
  const Case cases[] = {
      {"[ $RANK = 1 ] && { echo broken >&2; exit 7; }; exec sleep 100", {"--max-restarts", "1"}, 7, "broken"},
      {"[ $RANK = 1 ] && echo 'section load 0.2' >&$FABRIC_HEARTBEAT_FD; exec sleep 100", {}, 94, "section 'load'"},
      {"[ $RANK = 1 ] && exit 93; exec sleep 100", {"--max-restarts", "5"}, 93, "asked not to be started"},
      {"[ $RANK = 1 ] && { echo step 3 >&$FABRIC_HEARTBEAT_FD; exit 7; }; exec sleep 100",
       {"--max-restarts", "9"},
       96,
       "no further than step 3"}};
  for (const auto& one : cases) {
    INFO(one.script);
    Nodes nodes("2", one.script, one.flags);
    auto& a = nodes.start("a", {"--report", folder / "a.json"});
    auto& b = nodes.start("b", {"--report", folder / "b.json"});
    auto first = a.finish(), second = b.finish();
    require_clean(first);
    require_clean(second);
    CHECK(first.code == one.code);
    CHECK(second.code == one.code);
    CHECK(first.said("rank 1 (local rank 0 on b, pid"));  // on the first node, too
    CHECK(first.said(one.said));
    CHECK(second.said(one.said));
    auto report = fabric::read_json(read_file(folder / "b.json"));
    CHECK(report.at("exit_code").as_int() == one.code);
    if (one.code == 7) CHECK(report.at("attempts").as_list().size() == 2);
    report = fabric::read_json(read_file(folder / "a.json"));
    CHECK(report.at("outcome").as_string() == "stopped with the other nodes");
  }
}

TEST_CASE("the time of --require-all counts for ranks of all nodes", "[nodes]") {
  Nodes nodes("2", "[ $RANK = 0 ] || exec sleep 100", {"--require-all", "0.3"});
  auto &a = nodes.start("a"), &b = nodes.start("b");
  auto first = a.finish(), second = b.finish();
  require_clean(second);
  CHECK(first.code == 97);
  CHECK(second.code == 97);
  CHECK(first.said("b"));
  Nodes patient("2", "[ $RANK = 0 ] || sleep 0.5");
  auto &c = patient.start("a"), &d = patient.start("b");
  CHECK(c.finish().code == 0);
  CHECK(d.finish().code == 0);
}

TEST_CASE("a launcher is killed: the others scale down, or fail in seconds", "[nodes]") {
  for (const char* nnodes : {"1:2", "2"}) {
    INFO(nnodes);
    Nodes nodes(nnodes, kWait);
    auto &a = nodes.start("a"), &b = nodes.start("b");
    REQUIRE(a.wait_for("r0/2"));
    REQUIRE(b.wait_for("r1/2"));
    b.signal(SIGKILL);
    require_clean(b.finish());
    auto begin = now();
    if (std::string(nnodes) == "1:2") {
      CHECK(a.wait_for("r0/1 l0 g0/1 a1"));
      CHECK(now() - begin < 4);
      a.signal(SIGTERM);
      CHECK(a.finish().code == 143);
    } else {
      auto result = a.finish();
      require_clean(result);
      CHECK(result.code == 95);
      CHECK(now() - begin < 4);
      CHECK(result.said("b (launcher "));
    }
  }
}

TEST_CASE("the launcher that hosts is killed: the others go on under another", "[nodes]") {
  Nodes nodes("1:3", kWait);
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 1 to 3 nodes"));
  auto &b = nodes.start("b"), &c = nodes.start("c");
  REQUIRE(b.wait_for("r1/3"));
  REQUIRE(c.wait_for("r2/3"));
  a.signal(SIGKILL);
  require_clean(a.finish());
  auto begin = now();
  CHECK(b.wait_for("r0/2 l0 g0/2 a1"));
  CHECK(c.wait_for("r1/2 l0 g1/2 a1"));
  CHECK(now() - begin < 5);
  // And so when that one is killed.
  b.signal(SIGKILL);
  b.finish();
  CHECK(c.wait_for("r0/1 l0 g0/1 a2"));
  // A node that comes late finds the new host at the endpoint.
  auto& d = nodes.start("d");
  CHECK(d.wait_for("r1/2 l0 g1/2 a3"));
  c.signal(SIGTERM);
  CHECK(c.finish().code == 143);
  CHECK(d.wait_for("r0/1 l0 g0/1 a4"));
  d.signal(SIGTERM);
  require_clean(d.finish());

  Nodes fixed("2", kWait);
  auto& host = fixed.start("host");
  REQUIRE(host.wait_for("1 of 2 nodes"));
  auto& other = fixed.start("other");
  REQUIRE(other.wait_for("r1/2"));
  host.signal(SIGKILL);
  host.finish();
  auto result = other.finish();
  require_clean(result);
  CHECK(result.code == 95);
  CHECK(result.said("host (launcher "));
}

TEST_CASE("a host that was stopped for a while finds that the job went on without it", "[nodes]") {
  Nodes nodes("1:3", kWait);
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 1 to 3 nodes"));
  auto &b = nodes.start("b"), &c = nodes.start("c");
  REQUIRE(a.wait_for("r0/3"));
  REQUIRE(b.wait_for("r1/3"));
  REQUIRE(c.wait_for("r2/3"));
  a.signal(SIGSTOP);
  CHECK(b.wait_for("r0/2 l0 g0/2 a1"));
  CHECK(c.wait_for("r1/2 l0 g1/2 a1"));
  a.signal(SIGCONT);
  auto result = a.finish();
  require_clean(result);
  CHECK(result.code == 95);
  CHECK(result.said("under another host"));
  c.signal(SIGTERM);
  CHECK(c.finish().code == 143);
  CHECK(b.wait_for("r0/1 l0 g0/1 a2"));
}

TEST_CASE("late nodes share one new round within seconds", "[nodes]") {
  Nodes nodes("1:3", kWait);
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("r0/1"));
  auto begin = now();
  auto &b = nodes.start("b"), &c = nodes.start("c");
  CHECK(a.wait_for("r0/3 l0 g0/3 a1"));
  CHECK(b.wait_for("r1/3 l0 g1/3 a1"));
  CHECK(c.wait_for("r2/3 l0 g2/3 a1"));
  CHECK(now() - begin < 5);
  for (auto* job : {&c, &b, &a}) job->signal(SIGTERM);
  for (auto* job : {&c, &b, &a}) require_clean(job->finish());
}

TEST_CASE("a node beyond MAX is a spare, and promoted when one dies, the host or another", "[nodes]") {
  for (bool host_dies : {false, true}) {
    INFO("the host dies: " << host_dies);
    Nodes nodes("1:2", kWait);
    nodes.conf += ",last_call_timeout=10";
    auto& a = nodes.start("a");
    REQUIRE(a.wait_for("enough nodes are here"));
    auto& b = nodes.start("b");
    REQUIRE(a.wait_for("r0/2"));
    REQUIRE(b.wait_for("r1/2"));
    auto& c = nodes.start("c");
    REQUIRE(c.wait_for("this node is a spare"));
    auto &dies = host_dies ? a : b, &lives = host_dies ? b : a;
    dies.signal(SIGKILL);
    dies.finish();
    CHECK(c.wait_for("r1/2 l0 g1/2 a1"));
    CHECK(lives.wait_for("r0/2 l0 g0/2 a1"));
    lives.signal(SIGTERM);
    c.signal(SIGTERM);
    for (const auto& result : {lives.finish(), c.finish()}) {
      require_clean(result);
      CHECK(result.code == 143);
    }
  }
  // A spare ends with the job.
  Nodes pair("1:2", "sleep 1");
  auto &d = pair.start("d"), &e = pair.start("e");
  REQUIRE(d.wait_for("nodes"));
  usleep(500000);
  auto& f = pair.start("f");
  CHECK(d.finish().code == 0);
  CHECK(e.finish().code == 0);
  CHECK(f.finish().code == 0);
}

TEST_CASE("a node may be late inside the deadline; after it both sides name who was missing", "[nodes]") {
  Nodes nodes("2", kPlace);
  auto& a = nodes.start("a");
  usleep(1500000);
  auto& b = nodes.start("b");
  CHECK(a.finish().code == 0);
  CHECK(b.finish().code == 0);

  Nodes late("2", kPlace);
  late.conf = "join_timeout=1";
  auto& early = late.start("early");
  auto result = early.finish();
  require_clean(result);
  CHECK(result.code == 95);
  CHECK(result.said("within 1 s only 1 of 2 nodes came: early (launcher "));
  CHECK(result.said("Missing: 1 more"));
  late.conf += ",is_host=false";
  auto missed = late.start("late").finish();
  CHECK(missed.code == 95);
  CHECK(missed.said("the host of the rendezvous was not found at localhost:" + std::to_string(late.port())));
  CHECK(missed.said("Connection refused"));
}

TEST_CASE("junk and other jobs at the port are dropped, and the run is not touched", "[nodes]") {
  Nodes nodes("2", kWait);
  auto& a = nodes.start("a");
  REQUIRE(a.wait_for("1 of 2 nodes"));
  auto throw_at = [&](const std::string& bytes) { return nodes_support::connect_and_send(nodes.port(), bytes); };
  std::vector<int> open;
  for (int i = 0; i < 150; ++i) open.push_back(throw_at(""));  // more than may wait at a time, silent
  for (const auto& bytes :
       {std::string("GET / HTTP/1.0\r\n\r\n"), std::string(100000, 'x'), std::string("FAB1\xff\xff\xff\xff", 8),
        std::string("FAB1\0\0\0\2{}", 10), std::string("FAB2") + std::string(100, 'n'),
        std::string("FAB2") + std::string(40, 'n') + std::string("\0\0\0\xf{\"type\":\"beat\"}", 19)})
    open.push_back(throw_at(bytes));
  auto& thief = nodes.start("thief", {"--rdzv-id", "another job", "--rdzv-conf", "join_timeout=2,is_host=false"});
  auto& b = nodes.start("b");
  REQUIRE(a.wait_for("r0/2"));
  REQUIRE(b.wait_for("r1/2"));
  for (const auto& bytes : {std::string("FAB1\0\0\0\5{\"a\":", 13), std::string(10, '\0')})
    open.push_back(throw_at(bytes));
  auto refused = thief.finish();
  CHECK(refused.code == 95);
  CHECK(refused.said("another job's rendezvous"));
  CHECK(a.wait_for("dropped a connection from 127.0.0.1: "));
  usleep(300000);
  for (int fd : open) close(fd);
  a.signal(SIGTERM);
  auto result = a.finish();
  require_clean(result);
  CHECK(result.code == 143);
  CHECK_FALSE(result.said("a1"));
  b.finish();
}

TEST_CASE("a port that was asked for and is taken: the error names its owner", "[nodes]") {
  int port = 0;
  int fd = listening_socket(port);
  auto text = std::to_string(port);
  auto result = run_support::run(
      {"run", "--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", text, "true"});
  CHECK(result.code == 125);
  CHECK(result.said("port " + text));
  CHECK(result.said("is taken by process " + std::to_string(getpid())));
  // Nobody is told to host, but the endpoint is here, and what sits there is no rendezvous.
  auto mute = run_support::run({"run", "--nnodes", "2", "--rdzv-endpoint", "localhost:" + text, "--rdzv-conf",
                                "join_timeout=1,connect_timeout=0.5", "true"});
  CHECK(mute.code == 95);
  CHECK(mute.said("is held by process " + std::to_string(getpid())));
  // The store's port, which the node of rank 0 looks at.
  Nodes nodes("2", "true", {"--master-port", text});
  auto &a = nodes.start("a"), &b = nodes.start("b");
  for (auto* job : {&a, &b}) {
    auto end = job->finish();
    CHECK(end.code == 125);
    CHECK(end.said("is taken by process " + std::to_string(getpid())));
  }
  close(fd);
}

TEST_CASE("a launcher that is told to stop takes a fixed job with it, and says so", "[nodes]") {
  Nodes nodes("2", kWait);
  auto &a = nodes.start("a"), &b = nodes.start("b");
  REQUIRE(a.wait_for("r0/2"));
  REQUIRE(b.wait_for("r1/2"));
  b.signal(SIGTERM);
  CHECK(b.finish().code == 143);
  auto result = a.finish();
  require_clean(result);
  CHECK(result.code == 143);
  CHECK(result.said("stopped by SIGTERM"));
  Nodes waiting("2", kWait);
  auto& c = waiting.start("c");
  REQUIRE(c.wait_for("1 of 2 nodes"));
  c.signal(SIGINT);
  CHECK(c.finish().code == 130);
}

TEST_CASE("one launcher on each node of a SLURM step needs no flags, even where its names lead nowhere", "[nodes]") {
  // A search path without SLURM's tools: there is no SLURM that could answer them.
  Folder folder;
  REQUIRE(symlink("/bin/sh", (folder / "sh").c_str()) == 0);
  std::vector<std::unique_ptr<Job>> jobs;
  auto number = std::to_string(400000 + getpid() % 10000);
  for (const char* node : {"1", "0"}) {
    run_support::Variables step{{"SLURM_STEP_ID", "0"},   {"SLURM_NODEID", node},
                                {"SLURM_NTASKS", "2"},    {"SLURM_STEP_NUM_NODES", "2"},
                                {"SLURM_JOB_ID", number}, {"SLURM_STEP_NODELIST", "no-such-[08-09]"},
                                {"PATH", folder.path()},  {"SLURMD_NODENAME", "n" + std::string(node)}};
    jobs.push_back(std::make_unique<Job>(Words{"run", "-n", "2", "sh", "-c", kPlace}, step));
  }
  auto second = jobs[0]->finish(), first = jobs[1]->finish();
  INFO(first.error << second.error);
  CHECK(first.code == 0);
  CHECK(first.lines("g0") == Words{"r0/4 l0 g0/2 a0", "r1/4 l1 g0/2 a0"});
  CHECK(second.lines("g1") == Words{"r2/4 l0 g1/2 a0", "r3/4 l1 g1/2 a0"});
}

TEST_CASE("flags that cannot be, on several nodes", "[nodes]") {
  CHECK(run_support::run({"run", "--nnodes", "2", "true"}).said("say where the nodes meet"));
  CHECK(run_support::run({"run", "--nnodes", "1:2", "--rdzv-endpoint", "h:0", "true"}).code == 2);
  CHECK(run_support::run({"run", "--rdzv-conf", "join_timeot=1", "true"}).said("did you mean 'join_timeout'?"));
  CHECK(run_support::run({"run", "--nnodes", "2", "--rdzv-endpoint", "h:1", "--iface", "no0", "true"})
            .said("--iface no0"));
  CHECK(run_support::run({"run", "--nnodes", "2", "--rdzv-endpoint", "h:1", "./none"}).code == 127);
}
