// Who dies with whom: signals to the launcher, its guardian and its workers, and what is left after them.
#include <signal.h>
#include <unistd.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Job;
using run_support::require_clean;
using run_support::run;
using run_support::shell;

namespace {

// Helpers in sessions of their own, one orphaned at once, one whose parent stays.
const char* kHelpers = "setsid sleep 100 & (setsid sh -c 'sleep 100 & exec sleep 100' &) ; ";

}  // namespace

TEST_CASE("SIGTERM: each worker gets it once", "[run]") {
  Job job(shell(2, "trap 'echo got it' TERM; echo ready; while :; do sleep 0.05; done", {"--grace", "0.3"}));
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGTERM);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 143);
  CHECK(result.lines("got it").size() == 2);
}

TEST_CASE("the grace time holds when a sibling fails, at a signal and before a restart", "[run]") {
  const std::string deaf = "trap '' TERM; [ $RANK = 0 ] || { sleep 0.1; exit 5; }; while :; do sleep 0.05; done";
  auto failed = run(shell(2, deaf, {"--grace", "0.2"}));
  require_clean(failed);
  CHECK(failed.code == 5);
  CHECK(failed.seconds < 5);
  auto restarted = run(shell(2, deaf, {"--shutdown_timeout", "0.2", "--max-restarts", "1"}));
  require_clean(restarted);
  CHECK(restarted.code == 5);
  CHECK(restarted.seconds < 8);
}

TEST_CASE("a second Ctrl-C kills", "[run]") {
  Job job(shell(2, "trap '' INT; echo ready; while :; do sleep 0.05; done", {"--grace", "60"}));
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGINT);
  usleep(100000);
  job.signal(SIGINT);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 130);
}

TEST_CASE("whoever is killed, nothing is left", "[run]") {
  const std::string script = std::string(kHelpers) + "echo ready; wait; sleep 100";
  for (int number : {SIGKILL, SIGTERM, SIGSEGV, SIGALRM}) {
    INFO("signal " << number);
    Job launcher(shell(2, script));
    REQUIRE(launcher.wait_for("ready", 2));
    launcher.signal(number);
    require_clean(launcher.finish());
    CHECK(run({"run", "sh", "-c", "ls -d $TMPDIR/fabric_* | wc -l"}).lines() == std::vector<std::string>{"1"});
    Job guarded(shell(2, script));
    REQUIRE(guarded.wait_for("ready", 2));
    kill(guarded.guardian(), number);
    auto result = guarded.finish();
    require_clean(result);
    CHECK(result.code == 128 + number);
  }
  auto worker = run(shell(2, std::string(kHelpers) + "[ $RANK = 1 ] && exit 9; sleep 100"));
  require_clean(worker);
  CHECK(worker.code == 9);
  auto well = run(shell(2, kHelpers));
  require_clean(well);
  CHECK(well.code == 0);
}

TEST_CASE("launcher and guardian killed at one blow", "[run]") {
  bool has_cgroup = run({"doctor"}).out.find("workers cannot survive") != std::string::npos;
  bool has_namespace = run({"run", "--pid-namespace", "true"}).code == 0;
  std::vector<std::vector<std::string>> ways;
  if (has_cgroup) ways.push_back({});
  if (has_namespace) ways.push_back({"--pid-namespace"});
  if (ways.empty()) WARN("neither a cgroup that may be written nor PID namespaces here");
  for (const auto& flags : ways) {
    Job job(shell(2, std::string(kHelpers) + "echo ready; wait; sleep 100", flags));
    REQUIRE(job.wait_for("ready", 2));
    kill(job.guardian(), SIGSTOP);
    job.signal(SIGSTOP);
    kill(job.guardian(), SIGKILL);
    job.signal(SIGKILL);
    require_clean(job.finish());
  }
}

TEST_CASE("a PID namespace: codes, pids and signals are as without", "[run]") {
  if (run({"run", "--pid-namespace", "true"}).code != 0) {
    WARN("no PID namespaces here");
    return;
  }
  auto result = run(shell(2, "[ $RANK = 1 ] && kill -KILL $$; sleep 100", {"--pid-namespace"}));
  require_clean(result);
  CHECK(result.code == 137);
  Job job(shell(1, "echo pid $$; sleep 100", {"--pid-namespace"}));
  REQUIRE(job.wait_for("pid "));
  job.signal(SIGTERM);
  CHECK(job.finish().code == 143);
}

TEST_CASE("a stopped worker does not hold up the end", "[run]") {
  Job job(shell(2, "echo ready $$; [ $RANK = 0 ] && kill -STOP $$; sleep 100", {"--grace", "0.2"}));
  REQUIRE(job.wait_for("ready", 2));
  usleep(50000);
  job.signal(SIGTERM);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 143);
  CHECK(result.seconds < 5);
}

TEST_CASE("ignored hang-ups stay ignored, forwarded signals let the run go on", "[run]") {
  Job job(shell(2, "trap 'echo usr' USR1; trap 'exit 0' USR2; echo ready; while :; do sleep 0.05; done"), {},
          [] { signal(SIGHUP, SIG_IGN); });
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGHUP);
  job.signal(SIGUSR1);
  REQUIRE(job.wait_for("usr", 2));
  job.signal(SIGUSR2);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.lines("usr").size() == 2);
}
