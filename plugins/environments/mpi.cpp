#include <fabric/plugins/environments/mpi.h>

#include <fabric/base/error.h>

#include "plugins/environments/checks.h"

namespace fabric {
namespace {

// srun without --mpi=pmix starts Open MPI programs that know nothing of each other.
void refuse_singletons(const EnvReader& env) {
  if (env.get_int("OMPI_COMM_WORLD_SIZE") != 1 || !env.has("SLURM_STEP_ID")) return;
  int tasks = env.get_int("SLURM_NTASKS").value_or(1);
  if (tasks <= 1) return;
  throw ConfigError("srun started SLURM_NTASKS=" + std::to_string(tasks) +
                    " tasks, but OMPI_COMM_WORLD_SIZE=1: each is an MPI job of its own. Use srun --mpi=pmix, or mpirun "
                    "inside the allocation");
}

RankInfo read_mpirun(const EnvReader& env, const std::string& who) {
  RankInfo info{.source = "mpi"};
  info.world_size = env.require_int("OMPI_COMM_WORLD_SIZE", who);
  info.rank = env.require_int("OMPI_COMM_WORLD_RANK", who);
  info.local_rank = env.require_int("OMPI_COMM_WORLD_LOCAL_RANK", who);
  info.local_world_size = env.get_int("OMPI_COMM_WORLD_LOCAL_SIZE", 1).value_or(0);
  check_index("OMPI_COMM_WORLD_RANK", info.rank, "OMPI_COMM_WORLD_SIZE", info.world_size);
  if (info.local_world_size == 0) return info;
  check_index("OMPI_COMM_WORLD_LOCAL_RANK", info.local_rank, "OMPI_COMM_WORLD_LOCAL_SIZE", info.local_world_size);
  info.num_nodes = (info.world_size + info.local_world_size - 1) / info.local_world_size;
  info.node_rank = env.get_int("NODE_RANK").value_or(info.rank / info.local_world_size);
  return info;
}

// srun --mpi=pmix sets PMIX_* and SLURM_* but no OMPI_COMM_WORLD_*.
RankInfo read_pmix(const EnvReader& env, const std::string& who) {
  RankInfo info{.source = "mpi"};
  info.world_size = env.require_int("SLURM_NTASKS", who);
  info.rank = env.require_int("PMIX_RANK", who);
  info.local_rank = env.require_int("SLURM_LOCALID", who);
  info.local_world_size = 0;
  info.node_rank = env.get_int("SLURM_NODEID").value_or(0);
  info.num_nodes = env.get_int("SLURM_NNODES").value_or(0);
  check_index("PMIX_RANK", info.rank, "SLURM_NTASKS", info.world_size);
  return info;
}

// Open MPI's own names of a job, from 5 on back to 3; srun's where that started the ranks.
std::string mpi_job(const EnvReader& env) {
  for (const char* name : {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"})
    if (env.has(name)) return "MPI job " + *env.get(name);
  return "";
}

RankInfo read_mpi(const EnvReader& env) {
  refuse_singletons(env);
  const std::string who = "the environment 'mpi' (started by mpirun or srun --mpi=pmix)";
  bool pmix_only = !env.has("OMPI_COMM_WORLD_SIZE") && env.has("PMIX_RANK") && env.has("SLURM_NTASKS");
  RankInfo info = pmix_only ? read_pmix(env, who) : read_mpirun(env, who);
  info.main_address = env.get_or("MASTER_ADDR", "");
  info.main_port = port_or(env, "MASTER_PORT", 0);
  info.job = job_name(env, mpi_job(env));
  if (info.main_address.empty() != (info.main_port == 0))
    throw ConfigError(
        "only one of the environment variables MASTER_ADDR and MASTER_PORT is set; give mpirun both (-x "
        "MASTER_ADDR=… -x MASTER_PORT=…) or none");
  return info;
}

}  // namespace

MpiEnvironment::MpiEnvironment(const EnvReader& env) : ExternalEnvironment(read_mpi(env), sees_one_device(env)) {}

bool MpiEnvironment::detect(const EnvReader& env) {
  refuse_singletons(env);
  return env.get_int("OMPI_COMM_WORLD_SIZE").value_or(0) > 1;
}

}  // namespace fabric
