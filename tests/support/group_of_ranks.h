#pragma once

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/ranks.h"

namespace ranks {

/// The place of this process in the test's job, started by ranks::run or by mpirun.
inline fabric::RankInfo rank_info_from_env() {
  bool by_mpirun = std::getenv("OMPI_COMM_WORLD_RANK") != nullptr;
  auto number = [&](const char* mpi, const char* plain) { return std::stoi(std::getenv(by_mpirun ? mpi : plain)); };
  fabric::RankInfo info;
  info.rank = number("OMPI_COMM_WORLD_RANK", "RANK");
  info.world_size = number("OMPI_COMM_WORLD_SIZE", "WORLD_SIZE");
  info.local_rank = number("OMPI_COMM_WORLD_LOCAL_RANK", "LOCAL_RANK");
  info.local_world_size = number("OMPI_COMM_WORLD_LOCAL_SIZE", "LOCAL_WORLD_SIZE");
  if (by_mpirun) {
    info.source = "mpi";
  } else {
    info.main_address = std::getenv("MASTER_ADDR");
    info.main_port = std::stoi(std::getenv("MASTER_PORT"));
  }
  return info;
}

/// A group of the test's ranks: what `config` names, else FABRIC_TEST_BACKEND, else "auto". A short timeout, so that a
/// defect ends the test.
inline fabric::ProcessGroup group_from_env(fabric::ProcessGroup::Config config = {.timeout_seconds = 30}) {
  const char* backend = std::getenv("FABRIC_TEST_BACKEND");
  if (backend && config.backend == "auto") config.backend = backend;
  return fabric::ProcessGroup::create(config, rank_info_from_env(), c10::kCPU);
}

/// The strategy of a Fabric over the same.
inline fabric::Choice ddp_from_env() {
  const char* backend = std::getenv("FABRIC_TEST_BACKEND");
  return {"ddp", {{"process_group", fabric::Tree::Map{{"backend", backend ? backend : "auto"}}}}};
}

/// The processes of a group's ranks.
class Processes {
 public:
  explicit Processes(const fabric::ProcessGroup& group) {
    for (const auto& pid : group.all_gather_value(static_cast<std::int64_t>(getpid())))
      pids_.push_back(static_cast<pid_t>(pid.as_int()));
  }
  /// So that the test does not wait for one that sleeps or is stopped.
  void end(int rank) const { kill(pids_.at(rank), SIGKILL); }
  /// Waits until that rank's process is gone, half a minute at most: the one that serves the store outlives those that
  /// read it, and one that does nothing is there as long as the others need that.
  void outlive(int rank) const {
    for (int i = 0; i < 6000 && (kill(pids_.at(rank), 0) == 0 || errno != ESRCH); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

 private:
  std::vector<pid_t> pids_;
};

inline bool has_mpirun() { return std::system("mpirun --version > /dev/null 2>&1") == 0; }

/// Options that start `count` ranks with mpirun.
inline Options mpirun(int count) {
  Options options;
  options.world_size = count;
  options.env["OMP_NUM_THREADS"] = "1";
  options.env["OMPI_ALLOW_RUN_AS_ROOT"] = options.env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
  options.env["FABRIC_TEST_BACKEND"] = "mpi";
  options.prefix = {"mpirun", "--oversubscribe", "--bind-to", "none", "-n", std::to_string(count)};
  return options;
}

}  // namespace ranks

/// RANKS_TEST for both backends that run without a GPU: as plain processes over Gloo and under mpirun over MPI.
#define BOTH_BACKENDS_TEST(name, tags, count)                                                        \
  TEST_CASE(name " (gloo)", tags) {                                                                  \
    ::ranks::run_and_require(name, {.world_size = count, .env = {{"FABRIC_TEST_BACKEND", "gloo"}}}); \
  }                                                                                                  \
  TEST_CASE(name " (mpi)", tags "[mpi]") {                                                           \
    if (!::ranks::has_mpirun())                                                                      \
      WARN("skipped: there is no mpirun");                                                           \
    else                                                                                             \
      ::ranks::run_and_require(name, ::ranks::mpirun(count));                                        \
  }                                                                                                  \
  RANKS_BODY(name)

/// BOTH_BACKENDS_TEST, and in shared memory. The body's group is that of group_from_env.
#define ALL_BACKENDS_TEST(name, tags, count)                                                        \
  TEST_CASE(name " (shm)", tags "[shm]") {                                                          \
    ::ranks::run_and_require(name, {.world_size = count, .env = {{"FABRIC_TEST_BACKEND", "shm"}}}); \
  }                                                                                                 \
  BOTH_BACKENDS_TEST(name, tags, count)
