// Jobs of a real SLURM with four nodes, all of them on this machine.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <sstream>

#include <fabric/base/error.h>

#include "plugins/environments/hostlist.h"
#include "tests/ranks/slurm_support.h"
#include "tests/support/catch.h"

using slurm_support::Cluster;

namespace {

const std::string kFabric = FABRIC_PROGRAM, kTraining = FABRIC_TRAINING_PROGRAM, kRank = FABRIC_RUN_PROGRAM;

// One for all cases; the last of them is not known, so it goes with the program.
Cluster* cluster() {
  static Cluster only;
  if (only.problem().empty()) return &only;
  WARN("left out, no SLURM: " << only.problem());
  return nullptr;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TEST_CASE("host lists are what scontrol makes of them", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  for (std::string list : {"n1",
                           "n1,n2",
                           "n[1-3]",
                           "n[001-3]",
                           "[08-09]",
                           "a[1-2]b[3-4]",
                           "n[1-2][3-4]",
                           "n[8-10]",
                           "n[08-10]",
                           "n[9-010]",
                           "n[00-2]",
                           "n[1,3,5-7]",
                           "n[1,1]",
                           "n1,n1",
                           "n2,n1",
                           "a,,b",
                           ",a",
                           "a,",
                           "gpu-[08-09],n[1-2]",
                           "n[1-2],m3,k[01-02]",
                           "a-1",
                           "n[5-5]",

                           "n[1-9/4]",
                           "n[3-1]"}) {
    INFO(list);
    auto asked = slurm->shell("scontrol show hostnames '" + list + "'");
    std::istringstream words(asked.text);
    std::vector<std::string> expected;
    for (std::string host; words >> host;) expected.push_back(host);
    std::vector<std::string> ours;
    try {
      ours = fabric::expand_hostlist(list);
    } catch (const fabric::ConfigError&) {
      CHECK((asked.code != 0 || asked.has("rror")));
      continue;
    }
    CHECK(ours == expected);
  }
}

TEST_CASE("srun starts a program on Fabric, without our launcher", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  auto result =
      slurm->shell("srun -Q -N2 --ntasks-per-node=1 " + kTraining + " --fabric.num_nodes 2 --fabric.devices 1");
  INFO(result.text);
  CHECK(result.code == 0);
  CHECK(result.has("begins rank 0 of 2"));
  CHECK(result.has("begins rank 1 of 2"));
  CHECK(result.count("at step 5") == 2);
  auto failed = slurm->shell("srun -Q -N2 --ntasks-per-node=1 sh -c 'exit $((SLURM_PROCID * 7))'");
  CHECK(failed.code == 7);
  auto contradiction =
      slurm->shell("srun -Q -N2 --ntasks-per-node=1 " + kTraining + " --fabric.num_nodes 3 --fabric.devices 1");
  CHECK(contradiction.code == 2);
  CHECK(contradiction.has("num_nodes=3"));
}

TEST_CASE("one launcher on each node, without a flag about nodes", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  // Which nodes a job gets is SLURM's to say, unless it is told.
  auto result = slurm->shell("srun -Q -N2 -w gpu-08,gpu-09 --ntasks-per-node=1 " + kFabric + " run -n 2 " + kTraining);
  INFO(result.text);
  CHECK(result.code == 0);
  for (std::string rank : {"0", "1", "2", "3"}) {
    CHECK(result.has("begins rank " + rank + " of 4"));
    CHECK(result.has("ends rank " + rank + " at step 5"));
  }
  CHECK(result.has("[gpu-08:0] "));
  CHECK(result.has("[gpu-09:3] "));
  // SLURM brought a secret, and its files are gone.
  CHECK_FALSE(result.has("this job has no secret"));
  CHECK(slurm->shell("ls -d /tmp/fabric-" + std::to_string(geteuid()) + "-* /tmp/fabric-secret-* 2>/dev/null")
            .text.empty());
}

TEST_CASE("tasks that are alone although they are several: an error", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  auto launchers = slurm->shell("srun -Q -N1 -n2 " + kFabric + " run -n 1 true");
  CHECK(launchers.code == 2);
  CHECK(launchers.has("srun started 2 launchers on 1 nodes"));
  auto mpi =
      " --fabric.strategy ddp --fabric.strategy.process_group.backend mpi --fabric.devices 2 --fabric.environment "
      "slurm";
  auto singletons = slurm->shell("srun -Q -N1 -n2 --ntasks-per-node=2 " + kTraining + mpi);
  INFO(singletons.text);
  CHECK(singletons.code != 0);
  CHECK(singletons.has("--mpi=pmix"));
  if (FABRIC_HAS_MPI && slurm->shell("srun --mpi=list").has("pmix")) {
    auto ranks = slurm->shell("srun -Q -N1 -n2 --ntasks-per-node=2 --mpi=pmix " + kTraining + mpi);
    INFO(ranks.text);
    CHECK(ranks.code == 0);
    CHECK(ranks.count("of 2") == 2);
  }
}

TEST_CASE("a signal that SLURM and the launcher both deliver does no harm", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  auto job = slurm->submit("exec srun " + kFabric + " run -n 2 " + kRank + " preempt", 2);
  REQUIRE(slurm->wait_for("ready", 4));
  CHECK(slurm->shell("scancel --signal=USR1 " + job).code == 0);
  CHECK(slurm->wait_for("signal 10 ", 4));
  CHECK(slurm->wait_until_gone(job));
  INFO(slurm->output());
  CHECK(slurm->output().find("srun: error") == std::string::npos);
}

TEST_CASE("USR1: all ranks save, the job goes back into the queue and goes on", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  auto checkpoint = *slurm / "model.safetensors";
  auto job = slurm->submit("echo started restarts ${SLURM_RESTART_COUNT-0}\nexec srun " + kFabric + " run -n 1 " +
                               kTraining + " --checkpoint " + checkpoint +
                               " --steps 100 --step_seconds $([ ${SLURM_RESTART_COUNT-0} = 0 ] && "
                               "echo 0.1 || echo 0)",
                           4);
  bool began = slurm->wait_for("begins rank", 4);
  INFO(slurm->output());
  REQUIRE(began);
  usleep(300000);
  CHECK(slurm->shell("scancel --signal=USR1 " + job).code == 0);
  CHECK(slurm->wait_for("saved rank 0"));  // it gives the job back then, which may end the others before they say so
  CHECK(slurm->let_start(job));
  CHECK(slurm->wait_for("started restarts 1"));
  bool resumed = slurm->wait_for("resumed rank", 4);
  CHECK(resumed);
  CHECK(slurm->wait_for("at step 100", 4));
  CHECK(slurm->wait_until_gone(job));
  auto text = slurm->output();
  INFO(text);
  auto at = text.find("saved rank 0 at step ");
  REQUIRE(at != std::string::npos);
  auto step = std::to_string(std::atoi(text.c_str() + at + 21));
  for (std::string rank : {"0", "1", "2", "3"})
    CHECK(text.find("resumed rank " + rank + " at step " + step + " restarts 1") != std::string::npos);
}

TEST_CASE("scancel: nothing is left within KillWait", "[slurm]") {
  auto* slurm = cluster();
  if (!slurm) return;
  auto mark = "FABRIC_TEST_MARK=slurm-" + std::to_string(getpid()) + ".";
  auto helpers =
      "setsid sleep 100 & (setsid sh -c \"sleep 100 & exec sleep 100\" &) ; trap \"\" TERM; echo ready; while :; do "
      "sleep 1; done";
  auto job = slurm->submit("exec srun env " + mark + " " + kFabric + " run -n 2 --grace 1 sh -c '" + helpers + "'", 2);
  bool ready = slurm->wait_for("ready", 4);
  INFO(slurm->output());
  REQUIRE(ready);
  auto left = [&] { return slurm->shell("grep -slz " + mark + " /proc/[0-9]*/environ | grep -v /self/ | wc -l").text; };
  CHECK(std::atoi(left().c_str()) >= 10);
  auto start = std::chrono::steady_clock::now();
  CHECK(slurm->shell("scancel " + job).code == 0);
  while (std::atoi(left().c_str()) > 0 && seconds_since(start) < Cluster::kKillWait + 3) usleep(100000);
  CHECK(seconds_since(start) < Cluster::kKillWait);
  CHECK(slurm->wait_until_gone(job));
}
