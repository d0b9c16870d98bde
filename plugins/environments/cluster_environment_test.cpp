#include <fabric/plugins/environments/cluster_environment.h>

#include <fabric/base/error.h>
#include <fabric/plugins/environments/fabric.h>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::detect_environment;
using fabric::make_environment;
using fabric::MapEnv;
using Variables = std::map<std::string, std::string>;

namespace {

std::shared_ptr<MapEnv> env(const Variables& variables) { return std::make_shared<MapEnv>(variables); }

Variables operator+(Variables left, const Variables& right) {
  for (const auto& [name, value] : right) left[name] = value;
  return left;
}

const Variables kTorchrun{
    {"TORCHELASTIC_RUN_ID", "x"}, {"RANK", "1"},       {"WORLD_SIZE", "2"},       {"LOCAL_RANK", "1"},
    {"LOCAL_WORLD_SIZE", "2"},    {"GROUP_RANK", "0"}, {"GROUP_WORLD_SIZE", "1"}, {"MASTER_ADDR", "m"},
    {"MASTER_PORT", "29500"}};
const Variables kSrun{{"SLURM_NTASKS", "4"},      {"SLURM_PROCID", "3"},          {"SLURM_LOCALID", "1"},
                      {"SLURM_NODEID", "1"},      {"SLURM_NNODES", "2"},          {"SLURM_STEP_ID", "0"},
                      {"SLURM_JOB_ID", "123456"}, {"SLURM_NTASKS_PER_NODE", "2"}, {"SLURM_STEP_NODELIST", "n[1-2]"}};
const Variables kMpirun{{"OMPI_COMM_WORLD_SIZE", "4"},
                        {"OMPI_COMM_WORLD_RANK", "1"},
                        {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                        {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}};
const Variables kHydra{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
const Variables kByHand{
    {"RANK", "1"},      {"WORLD_SIZE", "2"},          {"LOCAL_RANK", "1"},    {"LOCAL_WORLD_SIZE", "2"},
    {"NODE_RANK", "0"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "1234"}};

}  // namespace

TEST_CASE("environments are detected in the documented order", "[environment]") {
  CHECK(detect_environment(env({}))->name() == "fabric");
  CHECK(detect_environment(env(kByHand))->name() == "fabric");
  CHECK(detect_environment(env(kMpirun))->name() == "mpi");
  CHECK(detect_environment(env(kSrun))->name() == "slurm");
  CHECK(detect_environment(env(kTorchrun))->name() == "torchelastic");
  CHECK(detect_environment(env(kTorchrun + kSrun + kMpirun))->name() == "torchelastic");
  CHECK(detect_environment(env(kByHand + kSrun))->name() == "slurm");
  CHECK(detect_environment(env(kByHand + kMpirun))->name() == "mpi");
}

TEST_CASE("mpirun inside an allocation is mpirun", "[environment]") {
  CHECK(detect_environment(env(kSrun + kMpirun))->name() == "mpi");
  auto batch = kSrun;
  batch.erase("SLURM_STEP_ID");
  CHECK(detect_environment(env(batch + kMpirun))->name() == "mpi");
  CHECK(detect_environment(env(batch))->name() == "fabric");
  CHECK(detect_environment(env(batch + Variables{{"OMPI_COMM_WORLD_SIZE", "1"}}))->name() == "fabric");
}

TEST_CASE("separate MPI jobs under srun are refused", "[environment]") {
  auto singletons = env(kSrun + Variables{{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}});
  CHECK_THROWS_WITH(detect_environment(singletons),
                    Contains("SLURM_NTASKS=4") && Contains("OMPI_COMM_WORLD_SIZE=1") && Contains("--mpi=pmix"));
  CHECK_THROWS_AS(make_environment("mpi", singletons), fabric::ConfigError);
}

TEST_CASE("environments can be had by name", "[environment]") {
  for (const auto& name : fabric::available_environments()) {
    if (name == "lsf") continue;  // needs a rank file
    CHECK(make_environment(name, env(kTorchrun + kSrun + kMpirun + kHydra))->name() == name);
  }
  CHECK_THROWS_WITH(make_environment("slrm"), Contains("'slrm'") && Contains("slurm"));
}

TEST_CASE("the plain environment without variables is one process", "[environment]") {
  auto plain = detect_environment(env({}));
  CHECK_FALSE(plain->creates_processes_externally());
  auto info = plain->rank_info();
  CHECK(info.world_size == 1);
  CHECK(info.rank == 0);
  CHECK(info.main_address == "127.0.0.1");
  CHECK(info.main_port > 0);
  CHECK(plain->rank_info().main_port == info.main_port);
  plain->set_world_size(4);
  plain->set_global_rank(2);
  CHECK(plain->world_size() == 4);
  CHECK(plain->global_rank() == 2);
  plain->validate_settings(7, 7);
}

TEST_CASE("the plain environment follows a launch", "[environment]") {
  auto variables = env({});
  fabric::FabricEnvironment plain(variables);
  plain.set_world_size(9);
  for (const auto& [name, value] : kByHand) variables->set(name, value);
  CHECK(plain.creates_processes_externally());
  CHECK(plain.rank_info().to_string() ==
        "rank 1 of 2, local rank 1 of 2, node 0 of 1, main address 127.0.0.1:1234, environment fabric");
  plain.set_world_size(9);
  CHECK(plain.world_size() == 2);
  plain.validate_settings(2, 1);
  CHECK_THROWS_WITH(plain.validate_settings(4, 1), Contains("2 ranks") && Contains("devices=4"));
}

TEST_CASE("ports of the plain environment", "[environment]") {
  CHECK(make_environment("fabric", env({{"STANDALONE_PORT", "77"}}))->main_port() == 77);
  CHECK(make_environment("fabric", env({{"STANDALONE_PORT", "77"}, {"MASTER_PORT", "78"}}))->main_port() == 78);
  CHECK_THROWS_WITH(make_environment("fabric", env({{"MASTER_PORT", "0"}}))->main_port(), Contains("MASTER_PORT"));
  CHECK_THROWS_WITH(make_environment("fabric", env({{"MASTER_PORT", "http"}}))->main_port(), Contains("'http'"));
}

TEST_CASE("LOCAL_RANK without RANK or WORLD_SIZE would make every process rank 0, and is refused", "[environment]") {
  auto refuse = [](const Variables& variables, const std::string& missing) {
    INFO(missing);
    CHECK_THROWS_AS(detect_environment(env(variables)), fabric::ConfigError);
    CHECK_THROWS_WITH(detect_environment(env(variables)), Contains("LOCAL_RANK=1") && Contains(missing));
  };
  refuse({{"LOCAL_RANK", "1"}, {"NODE_RANK", "1"}}, "RANK and WORLD_SIZE are not");
  refuse({{"LOCAL_RANK", "1"}, {"WORLD_SIZE", "2"}}, "but RANK is not");
  refuse({{"LOCAL_RANK", "1"}, {"RANK", "1"}}, "but WORLD_SIZE is not");
  auto later = env({});
  fabric::FabricEnvironment plain(later);
  later->set("LOCAL_RANK", "1");
  CHECK_THROWS_WITH(plain.global_rank(), Contains("variable RANK"));
  CHECK_THROWS_WITH(plain.world_size(), Contains("variable WORLD_SIZE"));
}

TEST_CASE("one device is enough where each rank has one of its own", "[environment]") {
  const Variables one{{"CUDA_VISIBLE_DEVICES", "1"}};
  auto virtual_rank = kTorchrun + Variables{{"LOCAL_RANK", "0"}};
  for (const auto& [variables, ranks] : {std::pair(virtual_rank, 2), std::pair(kMpirun, 4), std::pair(kByHand, 2)}) {
    auto separate = detect_environment(env(variables + one));
    INFO(separate->name());
    CHECK(separate->has_device_per_rank());
    separate->validate_settings(1, 1);
    separate->validate_settings(ranks, 1);
    CHECK_THROWS_AS(separate->validate_settings(ranks + 1, 1), fabric::ConfigError);
    for (const char* list : {"", "0,1", "-1", "NoDevFiles"}) {
      auto shared = detect_environment(env(variables + Variables{{"CUDA_VISIBLE_DEVICES", list}}));
      CHECK_FALSE(shared->has_device_per_rank());
      CHECK_THROWS_WITH(shared->validate_settings(1, 1), Contains("devices=1"));
    }
    CHECK_FALSE(detect_environment(env(variables))->has_device_per_rank());
  }
  CHECK_THROWS_WITH(detect_environment(env(virtual_rank + one))->validate_settings(1, 2),
                    Contains("1 node,") && Contains("num_nodes=2"));
  for (const char* name : {"GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-8932f937"})
    CHECK(detect_environment(env(kMpirun + Variables{{"CUDA_VISIBLE_DEVICES", name}}))->has_device_per_rank());
  CHECK_FALSE(detect_environment(env(one))->has_device_per_rank());
}

TEST_CASE("contradictions of variables set by hand name them", "[environment]") {
  auto refuse = [](Variables variables, const std::string& a, const std::string& b) {
    INFO(a << " " << b);
    CHECK_THROWS_AS(detect_environment(env(variables)), fabric::ConfigError);
    CHECK_THROWS_WITH(detect_environment(env(variables)), Contains(a) && Contains(b));
  };
  refuse(kByHand + Variables{{"RANK", "2"}}, "RANK=2", "WORLD_SIZE=2");
  refuse(kByHand + Variables{{"RANK", "-1"}}, "RANK", "'-1'");
  refuse(kByHand + Variables{{"WORLD_SIZE", "two"}}, "WORLD_SIZE", "'two'");
  refuse(kByHand + Variables{{"LOCAL_RANK", "2"}}, "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2");
  refuse(kByHand + Variables{{"LOCAL_WORLD_SIZE", "3"}}, "LOCAL_WORLD_SIZE=3", "WORLD_SIZE=2");
  refuse({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}}, "LOCAL_RANK", "kubeflow");
  refuse({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "a"}}, "MASTER_PORT", "not set");
  refuse({{"RANK", "1"}, {"LOCAL_RANK", "1"}}, "WORLD_SIZE", "RANK");
}

TEST_CASE("torchrun's variables", "[environment]") {
  auto variables = kTorchrun + Variables{{"RANK", "5"},
                                         {"WORLD_SIZE", "6"},
                                         {"GROUP_RANK", "2"},
                                         {"GROUP_WORLD_SIZE", "3"},
                                         {"TORCHELASTIC_RESTART_COUNT", "2"},
                                         {"TORCHELASTIC_USE_AGENT_STORE", "True"}};
  auto torchrun = detect_environment(env(variables));
  CHECK(torchrun->creates_processes_externally());
  CHECK(torchrun->rank_info().to_string() ==
        "rank 5 of 6, local rank 1 of 2, node 2 of 3, main address m:29500 (served by the launcher), restart 2, "
        "environment "
        "torchelastic, run id " +
            variables.at("TORCHELASTIC_RUN_ID"));
  torchrun->validate_settings(2, 3);
  CHECK_THROWS_WITH(torchrun->validate_settings(2, 2), Contains("6 ranks") && Contains("num_nodes=2"));
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  CHECK_FALSE(detect_environment(env(variables))->store_is_external());
  variables.erase("MASTER_ADDR");
  variables.erase("MASTER_PORT");
  CHECK(detect_environment(env(variables))->main_address() == "127.0.0.1");
  CHECK(detect_environment(env(variables))->main_port() == 12910);
  variables["RANK"] = "6";
  CHECK_THROWS_WITH(detect_environment(env(variables)), Contains("RANK=6") && Contains("WORLD_SIZE=6"));
  variables.erase("RANK");
  CHECK_THROWS_WITH(detect_environment(env(variables)), Contains("RANK"));
}

TEST_CASE("every node has one rank with --virtual-local-rank, or local ranks differ in number", "[environment]") {
  auto info = detect_environment(env(kTorchrun + Variables{{"RANK", "2"},
                                                           {"WORLD_SIZE", "3"},
                                                           {"LOCAL_RANK", "0"},
                                                           {"LOCAL_WORLD_SIZE", "1"},
                                                           {"GROUP_RANK", "1"},
                                                           {"GROUP_WORLD_SIZE", "2"}}))
                  ->rank_info();
  CHECK(info.local_world_size == 1);
  CHECK(info.num_nodes == 2);
}

TEST_CASE("mpirun's variables", "[environment]") {
  auto mpi = detect_environment(env(kMpirun));
  auto info = mpi->rank_info();
  CHECK(info.rank == 1);
  CHECK(info.local_rank == 2);  // not what a division of the rank gives
  CHECK(info.world_size == 4);
  CHECK(info.num_nodes == 1);
  CHECK(info.node_rank == 0);
  CHECK(info.main_address.empty());
  CHECK(info.main_port == 0);
  CHECK(info.to_string().find("main address unknown") != std::string::npos);
  auto with_address = detect_environment(env(kMpirun + Variables{{"MASTER_ADDR", "h"}, {"MASTER_PORT", "5"}}));
  CHECK(with_address->main_address() == "h");
  CHECK(with_address->main_port() == 5);
  CHECK_THROWS_WITH(detect_environment(env(kMpirun + Variables{{"MASTER_ADDR", "h"}})), Contains("MASTER_PORT"));
  CHECK_THROWS_WITH(detect_environment(env(kMpirun + Variables{{"OMPI_COMM_WORLD_RANK", "4"}})),
                    Contains("OMPI_COMM_WORLD_RANK=4"));
  CHECK_THROWS_WITH(mpi->validate_settings(2, 1), Contains("4 ranks"));
  auto incomplete = kMpirun;
  incomplete.erase("OMPI_COMM_WORLD_LOCAL_RANK");
  CHECK_THROWS_WITH(detect_environment(env(incomplete)), Contains("OMPI_COMM_WORLD_LOCAL_RANK"));
}

TEST_CASE("srun --mpi=pmix, chosen by name, has the ranks of PMIx", "[environment]") {
  auto info = make_environment("mpi", env(kSrun + Variables{{"PMIX_RANK", "2"}, {"PMIX_NAMESPACE", "s"}}))->rank_info();
  CHECK(info.source == "mpi");
  CHECK(info.rank == 2);
  CHECK(info.world_size == 4);
  CHECK(info.local_rank == 1);
  CHECK(info.node_rank == 1);
}

TEST_CASE("Kubeflow's variables, by name only", "[environment]") {
  Variables variables{{"RANK", "2"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "job-0"}, {"MASTER_PORT", "23456"}};
  CHECK_THROWS_AS(detect_environment(env(variables)), fabric::ConfigError);
  auto kubeflow = make_environment("kubeflow", env(variables));
  CHECK(kubeflow->creates_processes_externally());
  CHECK(kubeflow->rank_info().to_string() ==
        "rank 2 of 3, local rank 0 of 1, node 2 of 3, main address job-0:23456, environment kubeflow");
  for (const auto& [name, value] : variables) {
    auto incomplete = variables;
    incomplete.erase(name);
    CHECK_THROWS_WITH(make_environment("kubeflow", env(incomplete)), Contains(name));
  }
}
