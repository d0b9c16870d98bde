// What tests of ranks lean on: every rank is a process as if it had just been started.
#include "tests/support/ranks.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <set>
#include <thread>

namespace {

int times_here = 0;

std::string variable(const char* name) { return getenv(name) ? getenv(name) : "none"; }
// Read while the program is loaded, as libraries do.
const std::string when_loaded = variable("FABRIC_OWN_VARIABLE") + " " + variable("OMP_NUM_THREADS");

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::ptrdiff_t open_files() {
  auto files = std::filesystem::directory_iterator("/proc/self/fd");
  return std::distance(begin(files), end(files));
}

}  // namespace

RANKS_BODY("tells of itself") {
  std::cout << "place " << rank << " of " << world_size << " at " << variable("MASTER_ADDR") << ", pid " << getpid()
            << ", loaded with " << when_loaded << ", time " << ++times_here << ", files " << open_files() << ", group "
            << (getpgrp() == getpid()) << std::endl;
}

TEST_CASE("each rank is a new process with the variables of its job", "[ranks]") {
  std::set<std::string> pids;
  for (int job = 0; job < 2; ++job) {
    auto outcomes = ranks::run("tells of itself", {.world_size = 3});
    REQUIRE(outcomes.size() == 3);
    for (int rank = 0; rank < 3; ++rank) {
      const auto& said = outcomes[static_cast<std::size_t>(rank)].output;
      INFO(said);
      CHECK(outcomes[static_cast<std::size_t>(rank)].exit_code == 0);
      CHECK(holds(said, "place " + std::to_string(rank) + " of 3 at 127.0.0.1"));
      CHECK(holds(said, "loaded with none 1, time 1,"));
      CHECK(holds(said, "group 1"));
      pids.insert(said.substr(said.find("pid"), said.find(", loaded") - said.find("pid")));
    }
  }
  CHECK(pids.size() == 6);
}

TEST_CASE("a job's own variables are there while the program is loaded", "[ranks]") {
  auto said = [](std::map<std::string, std::string> variables) {
    return ranks::run("tells of itself", {.world_size = 1, .env = std::move(variables)}).at(0).output;
  };
  CHECK(holds(said({{"FABRIC_OWN_VARIABLE", "mine"}}), "loaded with mine 1,"));
  CHECK(holds(said({{"OMP_NUM_THREADS", "3"}}), "loaded with none 3,"));
  CHECK(holds(said({{"MASTER_ADDR", "here"}}), "at here,"));
  CHECK(holds(said({}), "loaded with none 1,"));
}

TEST_CASE("a variable of the test program itself comes to the ranks", "[ranks]") {
  setenv("FABRIC_OWN_VARIABLE", "later", 1);
  auto said = ranks::run("tells of itself", {.world_size = 1}).at(0).output;
  unsetenv("FABRIC_OWN_VARIABLE");
  CHECK(holds(said, "loaded with later"));
}

TEST_CASE("a rank holds no files of the others, nor of earlier ones", "[ranks]") {
  auto files = [](int ranks) {
    auto said = ranks::run("tells of itself", {.world_size = ranks}).back().output;
    return said.substr(said.find("files"), said.find(", group") - said.find("files"));
  };
  const auto first = files(1);
  CHECK(files(4) == first);
  CHECK(files(1) == first);
}

RANKS_BODY("ends in its own way") {
  if (rank == 1) _exit(7);
  if (rank == 2) kill(getpid(), SIGKILL);
  if (rank == 3) throw std::runtime_error("as it must");
}

TEST_CASE("the ends of ranks are told apart", "[ranks]") {
  for (int again = 0; again < 2; ++again) {
    auto outcomes = ranks::run("ends in its own way", {.world_size = 4});
    CHECK(outcomes[0].exit_code == 0);
    CHECK(outcomes[1].exit_code == 7);
    CHECK(outcomes[2].exit_code == 128 + SIGKILL);
    CHECK(outcomes[3].exit_code == 1);
    CHECK(outcomes[3].output == "rank 3 failed: as it must\n");
  }
}

RANKS_BODY("comes to no end") {
  std::cout << "begun" << std::endl;
  if (rank == 1) std::this_thread::sleep_for(std::chrono::minutes(5));
}

TEST_CASE("a rank that comes to no end is killed at the timeout, and the next job runs", "[ranks]") {
  auto outcomes = ranks::run("comes to no end", {.world_size = 2, .timeout_seconds = 0.5});
  CHECK(outcomes[1].exit_code == 124);
  CHECK(outcomes[1].output == "begun\n");
  CHECK(ranks::run("tells of itself", {.world_size = 1}).at(0).exit_code == 0);
}

TEST_CASE("much output comes whole", "[ranks]") {
  CHECK(ranks::run("writes much", {.world_size = 1}).at(0).output.size() == 3000000);
}
RANKS_BODY("writes much") { std::cout << std::string(3000000, 'x') << std::flush; }

TEST_CASE("a body that is not there is an error", "[ranks]") {
  auto outcome = ranks::run("nobody wrote this", {.world_size = 1}).at(0);
  CHECK(outcome.exit_code == 99);
  CHECK(holds(outcome.output, "no body named nobody wrote this"));
}
