#include "fabric/base/processor_share_internal.h"

#include "tests/support/catch.h"

using fabric::MapEnv;
using fabric::processor_share;
using Variables = std::map<std::string, std::string>;

namespace {

int share(const Variables& variables, int own, int of_parent, int ranks) {
  return processor_share(MapEnv(variables), own, of_parent, ranks);
}

const Variables kSrun{{"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "16"}, {"SLURM_CPUS_PER_TASK", "4"}};
const Variables kMpirun{{"OMPI_COMM_WORLD_LOCAL_RANK", "1"}};

Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

}  // namespace

TEST_CASE("ranks share the processors that they may run on", "[processors]") {
  CHECK(share({}, 64, 64, 1) == 64);
  CHECK(share({}, 64, 64, 4) == 16);
  CHECK(share({}, 64, 64, 0) == 64);
  CHECK(share({}, 3, 3, 4) == 1);
  // A container, or taskset around all ranks: what the machine has besides does not count.
  CHECK(share({}, 8, 64, 4) == 2);
}

TEST_CASE("a task of srun has the processors that it was given", "[processors]") {
  CHECK(share(kSrun, 4, 64, 8) == 4);
  CHECK(share(kSrun, 64, 64, 8) == 4);  // srun binds nothing here
  CHECK(share(kSrun, 32, 64, 8) == 4);  // the mask is the job's
  CHECK(share(kSrun, 2, 64, 8) == 2);   // asked of sbatch, not of srun
  CHECK(share(kSrun, 4, 64, 1) == 4);
  auto unsaid = kSrun;
  unsaid.erase("SLURM_CPUS_PER_TASK");
  CHECK(share(unsaid, 64, 64, 8) == 8);
  CHECK(share(with(kSrun, "SLURM_CPUS_PER_TASK", "many"), 64, 64, 8) == 8);
  CHECK(share(with(kSrun, "SLURM_CPUS_PER_TASK", "0"), 64, 64, 8) == 8);
}

TEST_CASE("ranks that were started inside a task of srun share its processors", "[processors]") {
  auto launched = with(with(kSrun, "SLURM_CPUS_PER_TASK", "16"), "LOCAL_RANK", "2");
  CHECK(share(launched, 16, 16, 4) == 4);
  CHECK(share(with(with(kSrun, "SLURM_CPUS_PER_TASK", "16"), "SLURM_NTASKS", "1"), 16, 16, 4) == 4);
  auto batch = kSrun;
  batch.erase("SLURM_STEP_ID");
  CHECK(share(batch, 16, 16, 4) == 4);
}

TEST_CASE("a rank that mpirun bound has its share of what mpirun has", "[processors]") {
  CHECK(share(kMpirun, 64, 64, 4) == 16);  // --bind-to none
  CHECK(share(kMpirun, 8, 64, 4) == 8);    // --map-by slot:PE=8
  CHECK(share(kMpirun, 1, 64, 4) == 1);    // --bind-to core
  CHECK(share(kMpirun, 32, 64, 16) == 4);  // --bind-to socket: eight ranks on each
  CHECK(share(kMpirun, 8, 8, 4) == 2);     // mpirun itself is confined
  CHECK(share(kMpirun, 8, 0, 4) == 2);     // the parent is not to be seen
  auto in_job = kSrun;
  in_job.insert(kMpirun.begin(), kMpirun.end());
  CHECK(share(in_job, 16, 64, 4) == 16);
}

TEST_CASE("this process has a share", "[processors]") {
  CHECK(processor_share(1) >= 1);
  CHECK(processor_share(1 << 20) == 1);
}
