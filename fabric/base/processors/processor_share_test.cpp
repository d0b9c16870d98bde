#include "fabric/base/processors/processor_share_internal.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "fabric/base/processors/container_limits_internal.h"
#include "tests/support/catch.h"
#include "tests/support/control_group.h"

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
  CHECK(processor_share(MapEnv(), 1) >= 1);
  CHECK(processor_share(MapEnv(), 1 << 20) == 1);
}

namespace {

namespace fs = std::filesystem;
namespace container = fabric::container;

/// A root with these files.
struct Root {
  explicit Root(const std::map<std::string, std::string>& files) {
    std::string name = (fs::temp_directory_path() / "fabric_container_XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path = name;
    for (const auto& [file, text] : files) {
      fs::create_directories((path / file).parent_path());
      std::ofstream(path / file) << text;
    }
  }
  ~Root() { fs::remove_all(path); }
  fs::path path;
};

}  // namespace

TEST_CASE("a container's quota of processors and its memory, control groups version 2", "[container]") {
  Root inside({{"proc/self/cgroup", "0::/\n"},
               {"sys/fs/cgroup/cpu.max", "150000 100000\n"},
               {"sys/fs/cgroup/memory.max", "1073741824\n"}});
  CHECK(container::processor_quota(inside.path) == 1.5);
  CHECK(container::processors(inside.path) == 2);
  CHECK(container::memory_limit(inside.path) == 1 << 30);
  Root none({{"proc/self/cgroup", "0::/user.slice/a\n"},
             {"sys/fs/cgroup/user.slice/a/cpu.max", "max 100000\n"},
             {"sys/fs/cgroup/user.slice/a/memory.max", "max\n"}});
  CHECK_FALSE(container::processors(none.path).has_value());
  CHECK_FALSE(container::memory_limit(none.path).has_value());
  // The tightest counts, wherever it stands above the process.
  Root nested({{"proc/self/cgroup", "0::/job/step\n"},
               {"sys/fs/cgroup/job/cpu.max", "50000 100000\n"},
               {"sys/fs/cgroup/job/step/cpu.max", "400000 100000\n"},
               {"sys/fs/cgroup/job/memory.max", "2000\n"},
               {"sys/fs/cgroup/job/step/memory.max", "max\n"}});
  CHECK(container::processor_quota(nested.path) == 0.5);
  CHECK(container::processors(nested.path) == 1);
  CHECK(container::memory_limit(nested.path) == 2000);
}

TEST_CASE("a container's quota of processors and its memory, control groups version 1", "[container]") {
  // The path is the host's; in the container only the root of the mount is there.
  Root inside({{"proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n"},
               {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n"},
               {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
               {"sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"}});
  CHECK(container::processors(inside.path) == 3);
  CHECK(container::memory_limit(inside.path) == 4096);
  Root none({{"proc/self/cgroup", "4:cpu:/\n9:memory:/\n"},
             {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
             {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"},
             {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"}});
  CHECK_FALSE(container::processors(none.path).has_value());
  CHECK_FALSE(container::memory_limit(none.path).has_value());
  Root empty({});
  CHECK_FALSE(container::processors(empty.path).has_value());
  CHECK_FALSE(container::memory_limit(empty.path).has_value());
}

TEST_CASE("the share of a process in a container with a quota is no larger than that", "[container]") {
  control_group::OneProcessorGroup group;
  if (!group)
    WARN("no cgroup with a quota of processors may be made here");
  else
    CHECK(group.holds([] { return processor_share(MapEnv(), 1) == 1; }));
}
