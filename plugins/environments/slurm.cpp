#include <fabric/plugins/environments/slurm.h>

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>
#include <sstream>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/plugins/environments/pmi.h>

#include "plugins/environments/checks.h"
#include "plugins/environments/hostlist.h"

namespace fabric {
namespace {

constexpr int kPortBase = 15000;
constexpr int kPortWithoutJob = 12910;

std::string first_host(const EnvReader& env) {
  if (auto given = env.get("MASTER_ADDR")) return *given;
  for (const char* name : {"SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"}) {
    auto list = env.get(name);
    if (!list) continue;
    auto hosts = expand_hostlist(*list);
    if (hosts.empty()) throw ConfigError(std::string("the environment variable ") + name + " names no host");
    return hosts.front();
  }
  return "127.0.0.1";
}

int derived_port(const EnvReader& env) {
  auto job = SlurmEnvironment::job_id(env);
  if (job.empty()) return kPortWithoutJob;
  auto digits = job.substr(job.size() > 4 ? job.size() - 4 : 0);
  if (digits.find_first_not_of("0123456789") != std::string::npos)
    throw ConfigError("the environment variable SLURM_JOB_ID is '" + job + "', but must be a number");
  return kPortBase + std::stoi(digits);
}

// Tasks on this task's node: the step's own count list, else the option --ntasks-per-node.
int tasks_on_node(const EnvReader& env, int world_size, int node_rank) {
  auto list = env.get("SLURM_STEP_TASKS_PER_NODE");
  if (!list) return env.get_int("SLURM_NTASKS_PER_NODE", 1).value_or(0);
  auto counts = expand_counts(*list);
  if (std::accumulate(counts.begin(), counts.end(), 0LL) != world_size)
    throw ConfigError("SLURM_STEP_TASKS_PER_NODE=" + *list + " contradicts SLURM_NTASKS=" + std::to_string(world_size));
  return node_rank < static_cast<int>(counts.size()) ? counts[node_rank] : 0;
}

void check_counts(const EnvReader& env, const RankInfo& info) {
  if (info.world_size <= 1) return;
  auto per_node = env.get_int("SLURM_NTASKS_PER_NODE", 1);
  auto tasks = "SLURM_NTASKS=" + std::to_string(info.world_size);
  if (!per_node && !env.has("SLURM_STEP_TASKS_PER_NODE"))
    throw ConfigError(
        tasks + " but SLURM_NTASKS_PER_NODE is not set: give srun or sbatch --ntasks-per-node instead of --ntasks");
  // The option is the job's as well, where a smaller step of it was started; the step's own counts are right then.
  if (!env.has("SLURM_STEP_TASKS_PER_NODE") && per_node && info.num_nodes > 0 &&
      1LL * *per_node * info.num_nodes != info.world_size)
    throw ConfigError(tasks + " contradicts SLURM_NTASKS_PER_NODE=" + std::to_string(*per_node) +
                      " times SLURM_NNODES=" + std::to_string(info.num_nodes) +
                      ": give srun --nodes and --ntasks-per-node, and no --ntasks");
}

RankInfo read_slurm(const EnvReader& env) {
  const std::string who = "the environment 'slurm' (started by srun)";
  RankInfo info{.source = "slurm"};
  info.world_size = env.require_int("SLURM_NTASKS", who);
  info.rank = env.require_int("SLURM_PROCID", who);
  info.local_rank = env.require_int("SLURM_LOCALID", who);
  info.node_rank = env.require_int("SLURM_NODEID", who);
  info.num_nodes = env.get_int("SLURM_STEP_NUM_NODES", 1).value_or(env.get_int("SLURM_NNODES", 1).value_or(0));
  check_index("SLURM_PROCID", info.rank, "SLURM_NTASKS", info.world_size);
  if (info.num_nodes > 0) check_index("SLURM_NODEID", info.node_rank, "SLURM_NNODES", info.num_nodes);
  check_counts(env, info);
  info.local_world_size = tasks_on_node(env, info.world_size, info.node_rank);
  if (info.local_world_size > 0)
    check_index("SLURM_LOCALID", info.local_rank, "SLURM_NTASKS_PER_NODE", info.local_world_size);
  info.restart_count = env.get_int("SLURM_RESTART_COUNT").value_or(0);
  info.main_address = first_host(env);
  info.main_port = port_or(env, "MASTER_PORT", derived_port(env));
  info.job = job_name(env, "SLURM job " + env.get_or("SLURM_JOB_ID", env.get_or("SLURM_JOBID", "unknown")) + ", step " +
                               env.get_or("SLURM_STEP_ID", "unknown"));
  // Jobs whose numbers end alike derive one port, and so do the steps of a job.
  if (!env.has("MASTER_PORT")) info.spare_ports = ports_beside(info.main_port, info.job);
  return info;
}

// With --gpus-per-task each task sees its own; srun --gpu-bind=none shows all of them to all tasks nevertheless.
bool has_own_devices(const EnvReader& env) {
  auto per_task = env.get("SLURM_GPUS_PER_TASK");
  if (!per_task) return sees_one_device(env);
  auto visible = count_visible_devices(env);
  return !visible || std::to_string(*visible) == per_task->substr(per_task->rfind(':') + 1);  // "2" or "a100:2"
}

bool on_path(const EnvReader& env, const std::string& program) {
  std::istringstream path(env.get_or("PATH", ""));
  for (std::string folder; std::getline(path, folder, ':');)
    if (access((folder + "/" + program).c_str(), X_OK) == 0) return true;
  return false;
}

// True once for this user and this machine. False as well where no note of it can be left: better never than always.
bool is_first_time(const EnvReader& env, const std::string& what) {
  auto cache = env.get_or("XDG_CACHE_HOME", "");
  if (cache.empty()) {
    auto home = env.get_or("HOME", "");
    if (home.empty()) return false;
    cache = home + "/.cache";
  }
  char host[256] = "localhost";
  gethostname(host, sizeof host - 1);
  std::error_code error;
  const auto folder = std::filesystem::path(cache) / "torchfabric" / "said";
  std::filesystem::create_directories(folder, error);
  const int file = open((folder / (what + "." + host)).c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  if (file >= 0) close(file);
  return file >= 0;
}

}  // namespace

SlurmEnvironment::SlurmEnvironment(const EnvReader& env)
    : ExternalEnvironment(read_slurm(env), has_own_devices(env)),
      interactive_(is_interactive(env)),
      tasks_per_node_(info_.local_world_size) {}

// A shell in the job (srun --pty bash, or what salloc starts) is a task of SLURM's, too; what is typed there is none.
// Several tasks without a terminal were started to run together, whatever the name of the job.
bool SlurmEnvironment::is_interactive(const EnvReader& env) {
  auto name = env.get_or("SLURM_JOB_NAME", "");
  if (name != "bash" && name != "interactive") return false;
  return !env.has("SLURM_STEP_ID") || env.has("SLURM_PTY_PORT") || env.get_int("SLURM_NTASKS").value_or(1) <= 1;
}

bool SlurmEnvironment::detect(const EnvReader& env) {
  if (!env.has("SLURM_NTASKS") || !env.has("SLURM_STEP_ID")) return false;
  // mpirun inside an allocation starts its daemons with srun, whose variables the ranks inherit.
  if (env.get_int("OMPI_COMM_WORLD_SIZE").value_or(0) > 1 || PmiEnvironment::is_hydra_rank(env)) return false;
  return !is_interactive(env);
}

std::string SlurmEnvironment::job_id(const EnvReader& env) {
  if (is_interactive(env)) return "";
  return env.get_or("SLURM_JOB_ID", env.get_or("SLURM_JOBID", ""));
}

void SlurmEnvironment::validate_settings(int devices, int num_nodes) const {
  if (interactive_) return;
  bool own_device = devices == 1 && has_device_per_rank();
  if (!own_device && tasks_per_node_ > 0 && tasks_per_node_ != devices)
    throw ConfigError("srun started " + std::to_string(tasks_per_node_) +
                      " tasks on this node (SLURM_NTASKS_PER_NODE), but devices=" + std::to_string(devices) +
                      ". Give both the same number: srun --ntasks-per-node=" + std::to_string(devices) +
                      " or devices=" + std::to_string(tasks_per_node_) +
                      "; or give each task a GPU of its own: srun --gpus-per-task=1 and devices=1");
  if (info_.num_nodes > 0 && info_.num_nodes != num_nodes)
    throw ConfigError("srun uses " + std::to_string(info_.num_nodes) +
                      " nodes (SLURM_NNODES), but num_nodes=" + std::to_string(num_nodes) +
                      ". Give both the same number: srun --nodes=" + std::to_string(num_nodes) +
                      " or num_nodes=" + std::to_string(info_.num_nodes));
  if (!own_device) check_product("srun", info_.world_size, devices, num_nodes);
}

void hint_at_srun(const EnvReader& env) {
  if (env.has("SLURM_STEP_ID") || SlurmEnvironment::is_interactive(env) || !on_path(env, "srun")) return;
  if (!is_first_time(env, "srun_hint")) return;
  log::rank_zero_info(
      "srun is on this machine but did not start this program. To train on SLURM, write srun in front of it: srun "
      "--nodes=2 --ntasks-per-node=4 ./program. (Said once on each machine.)");
}

}  // namespace fabric
