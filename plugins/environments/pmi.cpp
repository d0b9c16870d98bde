#include <fabric/plugins/environments/pmi.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/environments/checks.h"
#include "plugins/environments/hostlist.h"

namespace fabric {
namespace {

/// The variables of one launcher; null where it has none.
struct PmiVariables {
  const char* launcher;
  const char* size;
  const char* rank;
  const char* local_rank;
  const char* local_size;
  const char* node;
  const char* nodes;
  const char* job;
};

// In this order: Flux and PALS set PMI_RANK and PMI_SIZE as well.
constexpr PmiVariables kLaunchers[] = {
    {"flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", nullptr, nullptr, "FLUX_JOB_NNODES",
     "FLUX_JOB_ID"},
    {"mpiexec (PALS)", "PMI_SIZE", "PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", "PALS_NODEID", nullptr,
     "PALS_APID"},
    {"mpirun (MVAPICH)", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK",
     "MV2_COMM_WORLD_LOCAL_SIZE", nullptr, nullptr, nullptr},
    {"mpiexec (MPICH or Intel MPI)", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", nullptr, nullptr,
     nullptr},
};

const PmiVariables* launcher_of(const EnvReader& env) {
  auto found = std::find_if(std::begin(kLaunchers), std::end(kLaunchers),
                            [&](const PmiVariables& names) { return env.has(names.rank) && env.has(names.size); });
  return found == std::end(kLaunchers) ? nullptr : found;
}

struct Process {
  std::string name;
  pid_t parent = 0;
};

Process process(pid_t pid) {
  Process out;
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto open = text.find('('), close = text.rfind(')');  // the name may hold anything
  if (open == std::string::npos || close == std::string::npos || close + 4 > text.size()) return out;
  out.name = text.substr(open + 1, close - open - 1);
  out.parent = std::atoi(text.c_str() + close + 4);
  return out;
}

// The launcher's process on this node, which all ranks of the node have above them, scripts between or not.
pid_t launcher_process() {
  static const std::vector<std::string> kNames{"hydra_pmi_proxy", "hydra_bstrap_pr", "flux-shell", "palsd",
                                               "mpispawn",        "mpiexec",         "mpirun"};
  pid_t pid = getppid();
  for (int steps = 0; steps < 16 && pid > 1; ++steps) {
    const auto found = process(pid);
    if (std::any_of(kNames.begin(), kNames.end(), [&](const auto& name) { return found.name.starts_with(name); }))
      return pid;
    pid = found.parent;
  }
  return getppid();
}

// From 20000 on, below the ports that the kernel gives out by itself.
int port_for(std::size_t number) { return 20000 + static_cast<int>(number % 12000); }

int derived_port(const EnvReader& env, const PmiVariables& names) {
  auto job = names.job ? env.get(names.job) : std::nullopt;
  return port_for(job ? std::hash<std::string>()(*job) : static_cast<std::size_t>(launcher_process()));
}

std::string first_line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Where ranks on several nodes meet when nobody said so.
void meet_by_allocation(const EnvReader& env, RankInfo& info, const char* launcher) {
  if (auto list = env.get("SLURM_JOB_NODELIST")) {
    auto hosts = expand_hostlist(*list);
    if (!hosts.empty()) info.main_address = hosts.front();
  } else if (auto file = env.get("PBS_NODEFILE")) {
    info.main_address = first_line_of(*file);
  }
  const auto job = env.get_or("SLURM_JOB_ID", env.get_or("PBS_JOBID", ""));
  if (info.main_address.empty() || job.empty())
    throw ConfigError(std::string(launcher) + " started " + std::to_string(info.world_size) +
                      " ranks on several nodes, and nothing says where rank 0 is. Hand MASTER_ADDR (rank 0's host) and "
                      "MASTER_PORT to every rank: mpiexec -genv MASTER_ADDR node0 -genv MASTER_PORT 29500 …, or export "
                      "them before");
  info.main_port = port_for(std::hash<std::string>()(job));
  if (info.job.empty()) info.job = job_name(env, std::string(launcher) + " in job " + job);
}

RankInfo read_pmi(const EnvReader& env) {
  const PmiVariables* names = launcher_of(env);
  if (!names)
    throw ConfigError(
        "the environment 'pmi' needs the variables of its launcher: PMI_RANK and PMI_SIZE (MPICH, Intel MPI), "
        "MV2_COMM_WORLD_RANK and _SIZE (MVAPICH), FLUX_TASK_RANK and FLUX_JOB_SIZE, or PALS_RANKID and PMI_SIZE");
  const std::string who = std::string("the environment 'pmi' (started by ") + names->launcher + ")";
  RankInfo info{.source = "pmi"};
  info.world_size = env.require_int(names->size, who);
  info.rank = env.require_int(names->rank, who);
  info.local_rank = env.require_int(names->local_rank, who);
  check_index(names->rank, info.rank, names->size, info.world_size);
  info.num_nodes = names->nodes ? env.get_int(names->nodes, 1).value_or(0) : 0;
  info.local_world_size = names->local_size ? env.get_int(names->local_size, 1).value_or(0) : 0;
  if (info.local_world_size == 0 && info.num_nodes > 0 && info.world_size % info.num_nodes == 0)
    info.local_world_size = info.world_size / info.num_nodes;
  if (info.local_world_size > 0) {
    check_index(names->local_rank, info.local_rank, names->local_size ? names->local_size : "ranks per node",
                info.local_world_size);
    if (info.num_nodes == 0) info.num_nodes = (info.world_size + info.local_world_size - 1) / info.local_world_size;
    info.node_rank = info.rank / info.local_world_size;
  }
  if (names->node) info.node_rank = env.get_int(names->node).value_or(info.node_rank);
  info.main_address = env.get_or("MASTER_ADDR", "");
  info.main_port = port_or(env, "MASTER_PORT", 0);
  if (info.main_address.empty() != (info.main_port == 0))
    throw ConfigError(
        "only one of the environment variables MASTER_ADDR and MASTER_PORT is set; give the launcher both or none");
  const auto id = names->job ? env.get_or(names->job, "") : "";
  info.job = job_name(env, id.empty() ? "" : std::string(names->launcher) + " job " + id);
  if (info.main_port != 0) return info;
  if (info.local_world_size != info.world_size && info.num_nodes != 1) {
    meet_by_allocation(env, info, names->launcher);
  } else {
    info.main_address = "127.0.0.1";
    info.main_port = derived_port(env, *names);
    // On one node the launcher's process tells jobs apart as well.
    if (info.job.empty()) info.job = std::string(names->launcher) + ", process " + std::to_string(launcher_process());
  }
  info.spare_ports = ports_beside(info.main_port, info.job);
  return info;
}

}  // namespace

PmiEnvironment::PmiEnvironment(const EnvReader& env) : ExternalEnvironment(read_pmi(env), sees_one_device(env)) {}

bool PmiEnvironment::detect(const EnvReader& env) {
  // A script around the program may have translated the variables; and ranks that a launcher of ours started, itself
  // started once per node, have their own.
  if (env.has("RANK") && env.has("WORLD_SIZE") && env.has("LOCAL_RANK")) return false;
  const PmiVariables* names = launcher_of(env);
  return names && env.get_int(names->size).value_or(1) > 1;
}

bool PmiEnvironment::is_hydra_rank(const EnvReader& env) {
  return env.has("PMI_RANK") && env.has("MPI_LOCALRANKID") && env.get_int("PMI_SIZE").value_or(1) > 1;
}

void warn_of_unknown_launcher(const EnvReader& env) {
  struct Pair {
    const char *rank, *size;
  };
  for (const Pair& names : {Pair{"PMIX_RANK", nullptr},
                            {"ALPS_APP_PE", nullptr},
                            {"HOROVOD_RANK", "HOROVOD_SIZE"},
                            {"MPIRUN_RANK", "MPIRUN_NPROCS"},
                            {"PMI_RANK", "PMI_SIZE"}}) {
    if (env.has("LOCAL_RANK")) return;
    auto number = [&](const char* name) {
      auto text = name ? env.get_or(name, "") : "";
      const bool plain = !text.empty() && text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
      return plain ? std::stoi(text) : -1;
    };
    const int rank = number(names.rank), size = number(names.size);
    if (rank < 1 && size < 2) continue;
    std::string said = rank < 0 ? "" : std::string(names.rank) + "=" + std::to_string(rank);
    if (size >= 0) said += (said.empty() ? "" : " and ") + std::string(names.size) + "=" + std::to_string(size);
    log::warn_once(said + (said.find(" and ") == std::string::npos ? " says" : " say") +
                   " that this process has peers, but it runs alone: what started it is not known here. Start it with "
                   "fabric run, torchrun, srun, mpirun, mpiexec or flux, or set RANK, WORLD_SIZE, LOCAL_RANK, "
                   "LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each process");
    return;
  }
}

}  // namespace fabric
