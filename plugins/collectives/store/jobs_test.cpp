// Two jobs that come to one port.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include <torch/torch.h>

#include <fabric/plugins/collectives/process_group.h>
#include <fabric/plugins/environments/cluster_environment.h>

#include "tests/support/group_of_ranks.h"

using fabric::ProcessGroup;
using fabric::ReduceOp;
using std::chrono::steady_clock;

namespace {

fabric::RankInfo detected() { return fabric::detect_environment()->rank_info(); }

double sum_over(const fabric::RankInfo& ranks, double mine, double timeout = 60) {
  auto group = ProcessGroup::create({.timeout_seconds = timeout}, ranks, c10::kCPU);
  auto sum = group.all_reduce(torch::full({1}, mine), ReduceOp::sum).item<double>();
  group.barrier();
  return sum;
}

// This process's listening sockets that are not on the loopback.
std::string open_to_others() {
  std::string found;
  for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream file(table);
    std::string line;
    std::getline(file, line);
    while (std::getline(file, line)) {
      std::istringstream words(line);
      std::string slot, local, remote, state, skip, inode;
      words >> slot >> local >> remote >> state;
      for (int i = 0; i < 5; ++i) words >> skip;
      words >> inode;
      if (state != "0A") continue;
      bool loopback = local.starts_with("0100007F:") || local.starts_with("00000000000000000000000001000000:");
      if (loopback) continue;
      std::string wanted = "socket:[" + inode + "]", fd;
      for (int number = 0; number < 1024; ++number) {
        char target[64] = "";
        auto size = readlink(("/proc/self/fd/" + std::to_string(number)).c_str(), target, sizeof target - 1);
        if (size > 0 && wanted == std::string(target, static_cast<std::size_t>(size))) found += local + " ";
      }
    }
  }
  return found;
}

}  // namespace

RANKS_BODY("ranks of two jobs on one port") {
  setenv("TORCHELASTIC_RUN_ID", rank == 0 ? "jobA" : "jobB", 1);
  auto begin = steady_clock::now();
  try {
    sum_over(detected(), 1, rank == 0 ? 8 : 60);
  } catch (const fabric::ConfigError& error) {
    std::cout << "refused: " << error.what() << std::endl;
    RANK_CHECK(rank == 1 && steady_clock::now() - begin < std::chrono::seconds(30));
    _exit(3);
  } catch (const fabric::TimeoutError& error) {
    std::cout << "alone: " << error.what() << std::endl;
    RANK_CHECK(rank == 0);
    _exit(4);
  }
}

TEST_CASE("rank 0 of one job and rank 1 of another do not train together", "[collectives][jobs]") {
  auto outcomes = ranks::run("ranks of two jobs on one port", {.world_size = 2});
  INFO(outcomes[0].output << outcomes[1].output);
  CHECK(outcomes[0].exit_code == 4);
  CHECK(outcomes[0].output.find("Still missing: rank 1") != std::string::npos);
  CHECK(outcomes[1].exit_code == 3);
  for (const char* part : {"two jobs use one port", "run id jobA", "run id jobB"})
    CHECK(outcomes[1].output.find(part) != std::string::npos);
}

RANKS_BODY("rank 1 twice") {
  setenv("RANK", std::to_string(std::min(rank, 1)).c_str(), 1);
  setenv("LOCAL_RANK", std::to_string(std::min(rank, 1)).c_str(), 1);
  // Of a third that never comes, so that the job is still gathering.
  setenv("WORLD_SIZE", "3", 1);
  setenv("LOCAL_WORLD_SIZE", "3", 1);
  auto begin = steady_clock::now();
  try {
    sum_over(detected(), 1);
  } catch (const fabric::Error& error) {
    std::cout << error.what() << std::endl;
    if (std::string(error.what()).find("twice") == std::string::npos) ranks::fail(__FILE__, __LINE__, error.what());
    RANK_CHECK(steady_clock::now() - begin < std::chrono::seconds(30));
    sleep(rank == 0 ? 2 : 0);  // it serves the store
    return;
  }
  ranks::fail(__FILE__, __LINE__, "a rank that was there twice did not end the job");
}

TEST_CASE("a rank that is there twice ends a job without a name at once", "[collectives][jobs]") {
  ranks::run_and_require("rank 1 twice", {.world_size = 3});
}

// Ranks 0 and 1 are one job, 2 and 3 another; both derive one port from their numbers.
RANKS_BODY("two SLURM jobs of one port") {
  int job = rank / 2, mine = rank % 2;
  for (const char* name : {"MASTER_PORT", "MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
    unsetenv(name);
  auto base = std::stoi(std::getenv("FABRIC_TEST_JOB"));
  setenv("SLURM_JOB_ID", std::to_string(base + 10000 * job).c_str(), 1);
  setenv("SLURM_STEP_ID", "0", 1);
  for (const char* name : {"SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"}) setenv(name, "2", 1);
  for (const char* name : {"SLURM_PROCID", "SLURM_LOCALID"}) setenv(name, std::to_string(mine).c_str(), 1);
  setenv("SLURM_NODEID", "0", 1);
  for (const char* name : {"SLURM_NNODES", "SLURM_STEP_NUM_NODES"}) setenv(name, "1", 1);
  auto ranks = detected();
  RANK_CHECK(ranks.source == "slurm" && ranks.rank == mine);
  auto sum = sum_over(ranks, job == 0 ? 1 : 10);
  RANK_CHECK(sum == (job == 0 ? 2 : 20));
  auto open = open_to_others();
  if (!open.empty()) ranks::fail(__FILE__, __LINE__, "open to other machines: " + open);
}

TEST_CASE("two SLURM jobs that derive one port train each for itself", "[collectives][jobs]") {
  for (int turn = 0; turn < 3; ++turn) {
    ranks::Options options{.world_size = 4};
    options.env["FABRIC_TEST_JOB"] = std::to_string(10000 + getpid() * 7 % 9000 + turn);
    ranks::run_and_require("two SLURM jobs of one port", options);
  }
}

RANKS_TEST("a job on one machine is reached by nobody else", "[collectives][jobs]", 2) {
  auto group = ranks::group_from_env();
  auto apart = group.apart("second");
  group.barrier();
  apart.barrier();
  auto open = open_to_others();
  if (!open.empty()) ranks::fail(__FILE__, __LINE__, "open to other machines: " + open);
  group.barrier();
}
