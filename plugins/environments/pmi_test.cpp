#include <fabric/plugins/environments/pmi.h>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::detect_environment;
using fabric::make_environment;
using fabric::MapEnv;
using Variables = std::map<std::string, std::string>;

// Names that another test of the same translation unit has, too.
namespace pmi_cases {

std::shared_ptr<MapEnv> pmi_env(const Variables& variables) { return std::make_shared<MapEnv>(variables); }

Variables both(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

// As MPICH 4.0 sets them; Intel MPI's mpiexec is Hydra as well.
const Variables kHydraRank{
    {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}, {"PMI_FD", "8"}};
const Variables kMvapichRank{{"MV2_COMM_WORLD_RANK", "3"},
                             {"MV2_COMM_WORLD_SIZE", "4"},
                             {"MV2_COMM_WORLD_LOCAL_RANK", "1"},
                             {"MV2_COMM_WORLD_LOCAL_SIZE", "2"}};
const Variables kFluxRank{
    {"FLUX_JOB_ID", "f23"},   {"FLUX_JOB_SIZE", "4"}, {"FLUX_TASK_RANK", "3"}, {"FLUX_TASK_LOCAL_ID", "1"},
    {"FLUX_JOB_NNODES", "2"}, {"PMI_RANK", "3"},      {"PMI_SIZE", "4"}};
const Variables kPalsRank{{"PALS_RANKID", "5"}, {"PALS_LOCAL_RANKID", "1"}, {"PALS_LOCAL_SIZE", "2"},
                          {"PALS_NODEID", "2"}, {"PALS_APID", "a"},         {"PMI_RANK", "5"},
                          {"PMI_SIZE", "6"}};
const Variables kMeetingPoint{{"MASTER_ADDR", "node0"}, {"MASTER_PORT", "29500"}};

TEST_CASE("ranks of MPICH, Intel MPI, MVAPICH, Flux and PALS", "[environment][pmi]") {
  CHECK(detect_environment(pmi_env(kHydraRank))->name() == "pmi");
  CHECK(detect_environment(pmi_env(both(kHydraRank, kMeetingPoint)))->rank_info().to_string() ==
        "rank 1 of 2, local rank 1 of 2, node 0 of 1, main address node0:29500, environment pmi");
  CHECK(detect_environment(pmi_env(both(kMvapichRank, kMeetingPoint)))->rank_info().to_string() ==
        "rank 3 of 4, local rank 1 of 2, node 1 of 2, main address node0:29500, environment pmi");
  CHECK(detect_environment(pmi_env(both(kFluxRank, kMeetingPoint)))->rank_info().to_string() ==
        "rank 3 of 4, local rank 1 of 2, node 1 of 2, main address node0:29500, environment pmi, flux job f23");
  CHECK(detect_environment(pmi_env(both(kPalsRank, kMeetingPoint)))->rank_info().to_string() ==
        "rank 5 of 6, local rank 1 of 2, node 2 of 3, main address node0:29500, environment pmi, mpiexec "
        "(PALS) job a");
}

TEST_CASE("a launcher of one rank, and variables that a script translated, leave the plain environment",
          "[environment][pmi]") {
  CHECK(detect_environment(pmi_env(both(kHydraRank, Variables{{"PMI_SIZE", "1"}, {"PMI_RANK", "0"}})))->name() ==
        "fabric");
  CHECK(detect_environment(pmi_env(both(both(kHydraRank, kMeetingPoint),
                                        Variables{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}})))
            ->name() == "fabric");
  CHECK(detect_environment(pmi_env({{"PMI_RANK", "1"},
                                    {"PMI_SIZE", "2"},
                                    {"SLURM_STEP_ID", "0"},
                                    {"SLURM_NTASKS", "2"},
                                    {"SLURM_PROCID", "1"},
                                    {"SLURM_LOCALID", "1"},
                                    {"SLURM_NODEID", "0"},
                                    {"SLURM_NTASKS_PER_NODE", "2"},
                                    {"SLURM_NNODES", "1"}}))
            ->name() == "slurm");  // srun --mpi=pmi2
}

TEST_CASE("where ranks of one node meet follows from the launcher", "[environment][pmi]") {
  auto first = make_environment("pmi", pmi_env(kHydraRank))->rank_info(),
       second =
           make_environment("pmi", pmi_env(both(kHydraRank, Variables{{"PMI_RANK", "0"}, {"MPI_LOCALRANKID", "0"}})))
               ->rank_info();
  CHECK(first.main_address == "127.0.0.1");
  CHECK(first.main_port == second.main_port);
  CHECK(first.job == second.job);
  CHECK(first.spare_ports == second.spare_ports);
  CHECK(first.spare_ports.size() == 8);
  CHECK(first.main_port >= 20000);
  CHECK(first.main_port < 32768);
}

TEST_CASE("ranks on several nodes need an address, or an allocation that names one", "[environment][pmi]") {
  auto info = [](const Variables& variables) { return make_environment("pmi", pmi_env(variables))->rank_info(); };
  CHECK_THROWS_WITH(info(kMvapichRank), Contains("started 4 ranks on several nodes") && Contains("MASTER_ADDR"));
  CHECK_THROWS_WITH(info(kFluxRank), Contains("flux started 4 ranks"));
  auto in_slurm = both(kPalsRank, Variables{{"SLURM_JOB_NODELIST", "n[08-10]"}, {"SLURM_JOB_ID", "17"}});
  CHECK(info(in_slurm).main_address == "n08");
  CHECK(info(in_slurm).main_port == info(both(in_slurm, Variables{{"PALS_RANKID", "0"}})).main_port);
  CHECK_THROWS_WITH(info(both(kHydraRank, Variables{{"MASTER_ADDR", "node0"}})), Contains("only one of"));
}

TEST_CASE("variables of PMI launchers that contradict each other are refused by name", "[environment][pmi]") {
  auto info = [](const Variables& variables) { return make_environment("pmi", pmi_env(variables))->rank_info(); };
  CHECK_THROWS_WITH(info(both(kHydraRank, Variables{{"PMI_RANK", "2"}})),
                    Contains("PMI_RANK=2") && Contains("PMI_SIZE=2"));
  CHECK_THROWS_WITH(info(both(kHydraRank, Variables{{"MPI_LOCALRANKID", "2"}})), Contains("MPI_LOCALRANKID=2"));
  CHECK_THROWS_WITH(info({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}), Contains("MPI_LOCALRANKID"));
  CHECK_THROWS_WITH(info({}), Contains("PMI_RANK and PMI_SIZE") && Contains("FLUX_TASK_RANK"));
}

}  // namespace pmi_cases
