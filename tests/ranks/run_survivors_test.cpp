// Nothing survives a job: helpers that look dead, guardians that were stopped.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Job;
using run_support::now;
using run_support::read_file;
using run_support::require_clean;
using run_support::shell;

namespace {

std::vector<std::string> words(const std::string& deed) {
  return {"run", "-n", "2", "--grace", "0.5", FABRIC_RUN_PROGRAM, deed};
}

/// Where the cgroups of version 2 are mounted.
std::vector<std::string> cgroup_mounts() {
  std::vector<std::string> places;
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos) continue;
    std::istringstream words(line);
    std::string word;
    for (int i = 0; i < 5; ++i) words >> word;
    places.push_back(word);
  }
  return places;
}

/// The folder of the launcher's cgroup below every place where one may be.
bool has_cgroup(pid_t launcher) {
  for (const auto& place : cgroup_mounts())
    if (std::filesystem::exists(place + "/fabric-" + std::to_string(launcher))) return true;
  return false;
}

/// Takes the cgroups from this process and those that it starts, so that no janitor does the guardian's work. False
/// where that is not allowed.
bool hide_cgroups() {
  if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  for (const auto& place : cgroup_mounts())
    if (umount2(place.c_str(), MNT_DETACH) != 0) return false;
  return true;
}

bool soon(const std::function<bool()>& is_so) {
  for (double limit = now() + 5; now() < limit; usleep(5000))
    if (is_so()) return true;
  return is_so();
}

bool is_stopped(pid_t pid) {
  return read_file("/proc/" + std::to_string(pid) + "/stat").find(") T ") != std::string::npos;
}

}  // namespace

TEST_CASE("a helper whose first thread has ended does not survive, however the job ends", "[run]") {
  for (std::string deed : {"headless", "headless-fails", "headless-stays"}) {
    for (int victim : {0, 1}) {
      INFO(deed << ", victim " << victim);
      Job job(words(deed));
      auto pid = job.pid();
      auto begin = now();
      REQUIRE(job.wait_for("headless ", deed == "headless-fails" ? 1 : 2));
      if (deed == "headless-stays") kill(victim == 0 ? job.pid() : job.guardian(), SIGKILL);
      auto result = job.finish();
      INFO(result.error);
      require_clean(result);
      CHECK(result.code == (deed == "headless" ? 0 : deed == "headless-fails" ? 9 : 137));
      CHECK(now() - begin < (run_support::kSanitized ? 20 : 5));
      CHECK(soon([&] { return !has_cgroup(pid); }));
      if (deed != "headless-stays") break;
    }
  }
}

TEST_CASE("a guardian that is stopped goes on, and that is said", "[run]") {
  Job job(shell(2, "echo ready; exec sleep 100"));
  REQUIRE(job.wait_for("ready", 2));
  auto guardian = job.guardian();
  kill(guardian, SIGSTOP);
  CHECK(job.wait_for("the guardian of the workers (pid " + std::to_string(guardian) + ") was stopped"));
  CHECK(soon([&] { return !is_stopped(guardian); }));
  job.signal(SIGTERM);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 143);
}

TEST_CASE("a guardian that is stopped while its launcher is killed leaves nothing", "[run]") {
  constexpr int kNotAllowed = 77;
  for (bool without_cgroups : {false, true}) {
    INFO("without cgroups: " << without_cgroups);
    Job job(shell(2, "setsid sleep 100 & echo ready; exec sleep 100"), {}, [&] {
      if (without_cgroups && !hide_cgroups()) _exit(kNotAllowed);
    });
    if (!job.wait_for("ready", 2) && without_cgroups) {
      CHECK(job.finish().code == kNotAllowed);
      WARN("cgroups cannot be hidden here");
      return;
    }
    auto guardian = job.guardian();
    job.signal(SIGSTOP);  // so that it cannot let the guardian go on
    kill(guardian, SIGSTOP);
    REQUIRE(soon([&] { return is_stopped(guardian) && is_stopped(job.pid()); }));
    job.signal(SIGKILL);
    require_clean(job.finish());
  }
}

TEST_CASE("the guardian keeps no descriptor of the launcher, and workers get what was meant for them", "[run]") {
  Job job(shell(1,
                "echo passed $(cat <&9); echo sockets $(ls -l /proc/$PPID/fd | grep -c socket:) polls $(ls -l "
                "/proc/$PPID/fd | grep -c eventpoll). ; exec sleep 100"),
          {}, [] {
            int ends[2];
            if (pipe(ends) != 0 || write(ends[1], "on", 2) != 2) _exit(99);
            int high = fcntl(ends[0], F_DUPFD, 30);
            close(ends[0]);
            close(ends[1]);
            dup2(high, 9);
            close(high);
          });
  REQUIRE(job.wait_for("passed on"));
  CHECK(job.wait_for("sockets 1 polls 1."));  // its own
  job.signal(SIGTERM);
  require_clean(job.finish());
}
