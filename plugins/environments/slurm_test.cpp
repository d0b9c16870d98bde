#include <fabric/plugins/environments/slurm.h>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::ConfigError;
using fabric::MapEnv;
using fabric::SlurmEnvironment;
using Variables = std::map<std::string, std::string>;

namespace {

Variables task(const Variables& changes = {}) {
  Variables variables{{"SLURM_NTASKS", "4"},      {"SLURM_PROCID", "3"},          {"SLURM_LOCALID", "1"},
                      {"SLURM_NODEID", "1"},      {"SLURM_NNODES", "2"},          {"SLURM_STEP_ID", "0"},
                      {"SLURM_JOB_ID", "123456"}, {"SLURM_NTASKS_PER_NODE", "2"}, {"SLURM_NODELIST", "gpu-[08-09],n1"}};
  for (const auto& [name, value] : changes)
    if (value == "-")
      variables.erase(name);
    else
      variables[name] = value;
  return variables;
}

fabric::RankInfo info(const Variables& changes = {}) { return SlurmEnvironment(MapEnv(task(changes))).rank_info(); }

}  // namespace

TEST_CASE("a task of srun", "[slurm]") {
  CHECK(info().to_string() ==
        "rank 3 of 4, local rank 1 of 2, node 1 of 2, main address gpu-08:18456, environment slurm, SLURM job "
        "123456, step 0");
  CHECK(info({{"SLURM_RESTART_COUNT", "2"}}).restart_count == 2);
}

TEST_CASE("main address and port of a step", "[slurm]") {
  CHECK(info({{"SLURM_STEP_NODELIST", "n[5-6]"}}).main_address == "n5");
  CHECK(info({{"SLURM_NODELIST", "-"}, {"SLURM_JOB_NODELIST", "a[1-2]b[3-4]"}}).main_address == "a1b3");
  CHECK(info({{"SLURM_NODELIST", "host1 host2"}}).main_address == "host1");
  CHECK(info({{"SLURM_NODELIST", "-"}}).main_address == "127.0.0.1");
  CHECK(info({{"MASTER_ADDR", "me"}, {"MASTER_PORT", "99"}}).main_address == "me");
  CHECK(info({{"MASTER_ADDR", "me"}, {"MASTER_PORT", "99"}}).main_port == 99);
  CHECK(info({{"SLURM_JOB_ID", "7"}}).main_port == 15007);
  CHECK(info({{"SLURM_JOB_ID", "120000"}}).main_port == 15000);
  CHECK(info({{"SLURM_JOB_ID", "-"}}).main_port == 12910);
  CHECK(info({{"SLURM_JOB_ID", "-"}, {"SLURM_JOBID", "42"}}).main_port == 15042);
  CHECK_THROWS_AS(info({{"SLURM_NODELIST", "n[1-"}}), ConfigError);
  CHECK_THROWS_AS(info({{"SLURM_JOB_ID", "12x4"}}), ConfigError);
}

TEST_CASE("jobs and steps that derive one port have others beside it", "[slurm]") {
  auto first = info({{"SLURM_JOB_ID", "10042"}}), second = info({{"SLURM_JOB_ID", "20042"}});
  auto step = info({{"SLURM_JOB_ID", "10042"}, {"SLURM_STEP_ID", "1"}});
  CHECK(first.main_port == second.main_port);
  CHECK(first.job != second.job);
  CHECK(first.job != step.job);
  CHECK(first.spare_ports.size() == 8);
  CHECK(first.spare_ports != second.spare_ports);
  CHECK(first.spare_ports != step.spare_ports);
  for (int port : first.spare_ports) CHECK((port >= 20000 && port < 30000));
  CHECK(info({{"SLURM_JOB_ID", "10042"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}})
            .spare_ports == first.spare_ports);
  CHECK(info({{"MASTER_PORT", "99"}}).spare_ports.empty());
  CHECK(info({{"FABRIC_JOB_ID", "mine"}}).job == "SLURM job 123456, step 0, job mine");
}

TEST_CASE("only a step that srun started counts", "[slurm]") {
  auto detect = [](const Variables& changes) { return SlurmEnvironment::detect(MapEnv(task(changes))); };
  CHECK(detect({}));
  CHECK_FALSE(detect({{"SLURM_STEP_ID", "-"}}));  // the batch script, though it has a rank
  CHECK_FALSE(detect({{"SLURM_NTASKS", "-"}}));
  for (const char* name : {"bash", "interactive"}) {
    CHECK_FALSE(detect({{"SLURM_JOB_NAME", name}, {"SLURM_NTASKS", "1"}}));
    CHECK_FALSE(detect({{"SLURM_JOB_NAME", name}, {"SLURM_PTY_PORT", "40000"}}));  // srun --pty bash
    CHECK(detect({{"SLURM_JOB_NAME", name}}));                                     // salloc, then srun ./train
  }
  // Hydra's daemons are tasks of srun; the ranks inherit their variables.
  CHECK_FALSE(detect({{"PMI_RANK", "1"}, {"PMI_SIZE", "8"}, {"MPI_LOCALRANKID", "1"}}));
  CHECK(detect({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}}));  // srun --mpi=pmi2
  CHECK(detect({{"SLURM_JOB_NAME", "train"}}));
}

TEST_CASE("interactive jobs report no job id", "[slurm]") {
  CHECK(SlurmEnvironment::job_id(MapEnv(task())) == "123456");
  CHECK(SlurmEnvironment::job_id(MapEnv(task({{"SLURM_JOB_NAME", "bash"}, {"SLURM_PTY_PORT", "1"}}))).empty());
  CHECK(SlurmEnvironment::job_id(MapEnv()).empty());
}

TEST_CASE("contradictory counts are refused by name", "[slurm]") {
  CHECK_THROWS_WITH(info({{"SLURM_NTASKS_PER_NODE", "-"}}),
                    Contains("SLURM_NTASKS=4") && Contains("--ntasks-per-node"));
  CHECK_THROWS_WITH(info({{"SLURM_NTASKS_PER_NODE", "3"}}),
                    Contains("SLURM_NTASKS=4") && Contains("SLURM_NTASKS_PER_NODE=3") && Contains("SLURM_NNODES=2"));
  CHECK_THROWS_WITH(info({{"SLURM_PROCID", "4"}}), Contains("SLURM_PROCID=4"));
  CHECK_THROWS_WITH(info({{"SLURM_LOCALID", "2"}}), Contains("SLURM_LOCALID=2"));
  CHECK_THROWS_WITH(info({{"SLURM_NODEID", "2"}}), Contains("SLURM_NODEID=2"));
  CHECK_THROWS_WITH(info({{"SLURM_STEP_TASKS_PER_NODE", "2(x3)"}}), Contains("SLURM_STEP_TASKS_PER_NODE=2(x3)"));
  CHECK_THROWS_WITH(info({{"SLURM_LOCALID", "-"}}), Contains("SLURM_LOCALID"));
  CHECK(info({{"SLURM_NTASKS", "1"},
              {"SLURM_PROCID", "0"},
              {"SLURM_LOCALID", "0"},
              {"SLURM_NODEID", "0"},
              {"SLURM_NTASKS_PER_NODE", "-"},
              {"SLURM_NNODES", "1"}})
            .world_size == 1);
}

TEST_CASE("the step's own counts stand in for --ntasks-per-node", "[slurm]") {
  Variables uneven{{"SLURM_NTASKS", "3"},
                   {"SLURM_PROCID", "2"},
                   {"SLURM_LOCALID", "0"},
                   {"SLURM_NTASKS_PER_NODE", "-"},
                   {"SLURM_STEP_TASKS_PER_NODE", "2,1"}};
  CHECK(info(uneven).local_world_size == 1);
  uneven["SLURM_NODEID"] = "0";
  CHECK(info(uneven).local_world_size == 2);
}

TEST_CASE("a step may be smaller than the job that it runs in", "[slurm]") {
  // sbatch --nodes=2 --ntasks-per-node=4, in it srun -N1 -n2
  auto step = info({{"SLURM_NTASKS", "2"},
                    {"SLURM_PROCID", "1"},
                    {"SLURM_NODEID", "0"},
                    {"SLURM_NTASKS_PER_NODE", "4"},
                    {"SLURM_STEP_NUM_NODES", "1"},
                    {"SLURM_STEP_TASKS_PER_NODE", "2"}});
  CHECK(step.world_size == 2);
  CHECK(step.local_world_size == 2);
  CHECK(step.num_nodes == 1);
}

TEST_CASE("settings must agree with srun", "[slurm]") {
  SlurmEnvironment slurm{MapEnv(task())};
  slurm.validate_settings(2, 2);
  CHECK_THROWS_WITH(slurm.validate_settings(4, 2), Contains("devices=4") && Contains("--ntasks-per-node=4"));
  CHECK_THROWS_WITH(slurm.validate_settings(2, 1), Contains("num_nodes=1") && Contains("--nodes=1"));
  CHECK_THROWS_AS(slurm.validate_settings(2, 1), ConfigError);
  SlurmEnvironment{MapEnv(task({{"SLURM_JOB_NAME", "bash"}, {"SLURM_PTY_PORT", "1"}}))}.validate_settings(8, 8);
}

TEST_CASE("a GPU of each task's own is one device", "[slurm]") {
  auto slurm = [](const Variables& changes) { return SlurmEnvironment{MapEnv(task(changes))}; };
  for (const Variables& own : {Variables{{"SLURM_GPUS_PER_TASK", "1"}},
                               Variables{{"SLURM_GPUS_PER_TASK", "a100:1"}, {"CUDA_VISIBLE_DEVICES", "3"}},
                               Variables{{"SLURM_GPUS_PER_TASK", "2"}, {"CUDA_VISIBLE_DEVICES", "2,3"}},
                               Variables{{"CUDA_VISIBLE_DEVICES", "0"}}}) {
    auto each = slurm(own);
    CHECK(each.has_device_per_rank());
    each.validate_settings(1, 2);
    each.validate_settings(2, 2);
    CHECK_THROWS_WITH(each.validate_settings(1, 1), Contains("num_nodes=1"));
    CHECK_THROWS_WITH(each.validate_settings(4, 2), Contains("devices=4"));
  }
  CHECK_THROWS_WITH(slurm({}).validate_settings(1, 2), Contains("devices=1") && Contains("--gpus-per-task=1"));
  // srun --gpu-bind=none
  auto all_see_all = slurm({{"SLURM_GPUS_PER_TASK", "1"}, {"CUDA_VISIBLE_DEVICES", "0,1"}});
  CHECK_THROWS_AS(all_see_all.validate_settings(1, 2), ConfigError);
  all_see_all.validate_settings(2, 2);
  // Three tasks on two nodes.
  Variables uneven{{"SLURM_NTASKS", "3"},          {"SLURM_PROCID", "2"},        {"SLURM_LOCALID", "0"},
                   {"SLURM_NTASKS_PER_NODE", "-"}, {"SLURM_GPUS_PER_TASK", "1"}, {"SLURM_STEP_TASKS_PER_NODE", "2,1"}};
  slurm(uneven).validate_settings(1, 2);
}
