#include "launcher/run/job.h"

#include <sys/random.h>

#include <algorithm>

#include "launcher/hostlist.h"
#include "launcher/run/machine.h"

namespace fabric::run {
namespace {

std::string random_id() {
  unsigned char bytes[8] = {};
  [[maybe_unused]] auto filled = getrandom(bytes, sizeof bytes, 0);
  std::string text;
  for (unsigned char byte : bytes) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

int port_from_job(const std::string& id) {
  auto digits = id.substr(id.size() > 4 ? id.size() - 4 : 0);
  bool numeric = !digits.empty() && digits.find_first_not_of("0123456789") == std::string::npos;
  return 15000 + (numeric ? std::atoi(digits.c_str()) : 0);
}

void check_nodes(const Options& options) {
  if (options.min_nodes != options.max_nodes)
    throw ConfigError("--nnodes " + std::to_string(options.min_nodes) + ":" + std::to_string(options.max_nodes) +
                      ": jobs whose number of nodes changes are not offered; give one number");
  if (options.max_nodes == 1 || options.mpi_ranks > 0) return;
  if (options.master_addr.empty() || options.master_port == 0)
    throw ConfigError("--nnodes " + std::to_string(options.max_nodes) +
                      ": say where node 0 is, with --master-addr and --master-port or --rdzv-endpoint HOST:PORT, and "
                      "which node this is, with --node-rank");
}

}  // namespace

Options complete_from_slurm(Options options, const EnvReader& env) {
  bool in_step = env.has("SLURM_STEP_ID") && env.has("SLURM_NODEID") && env.has("SLURM_NTASKS");
  if (!in_step || options.nodes_given) return options;
  int nodes = env.get_int("SLURM_STEP_NUM_NODES", 1).value_or(env.get_int("SLURM_NNODES", 1).value_or(1));
  int tasks = env.require_int("SLURM_NTASKS", "srun");
  if (tasks > nodes)
    throw ConfigError("srun started " + std::to_string(tasks) + " launchers on " + std::to_string(nodes) +
                      " nodes. One a node is right: srun --ntasks-per-node=1 fabric run -n N …; or let srun start the "
                      "program itself, without fabric run");
  options.min_nodes = options.max_nodes = nodes;
  options.node_rank = env.require_int("SLURM_NODEID", "srun");
  if (options.run_id.empty()) options.run_id = env.get_or("SLURM_JOB_ID", "0") + "." + env.get_or("SLURM_STEP_ID", "0");
  if (nodes == 1) return options;
  auto hosts = expand_hostlist(env.get_or("SLURM_STEP_NODELIST", env.get_or("SLURM_NODELIST", "")));
  if (options.master_addr.empty() && !hosts.empty()) options.master_addr = hosts.front();
  if (options.master_port == 0) options.master_port = port_from_job(env.get_or("SLURM_JOB_ID", ""));
  return options;
}

PlannedJob plan_job(const Options& options, const EnvReader& env) {
  check_nodes(options);
  PlannedJob planned;
  auto& job = planned.job;
  job.id = options.run_id.empty() ? random_id() : options.run_id;
  job.host = host_name(env);
  job.role = options.role;
  job.node = options.node_rank;
  job.nodes = options.max_nodes;
  job.local_size = count_workers(options.nproc, env);
  job.first_rank = job.node * job.local_size;
  job.world_size = job.nodes * job.local_size;
  job.max_restarts = options.max_restarts;
  job.master_addr = options.master_addr.empty() ? "127.0.0.1" : options.master_addr;
  job.master_port = options.master_port;
  if (job.master_port == 0) {
    planned.port.emplace();
    job.master_port = planned.port->port();
  } else if (job.node == 0) {
    if (auto owner = port_owner(job.master_port))
      throw LaunchError("port " + std::to_string(job.master_port) + " is taken by " + *owner +
                        ". Give another --master-port, or none, and a free one is chosen");
  }
  auto filter = parse_ranks(options.local_ranks_filter, "--local-ranks-filter");
  for (int rank : filter)
    if (rank >= job.local_size)
      throw ConfigError("--local-ranks-filter " + options.local_ranks_filter + ": there are " +
                        std::to_string(job.local_size) + " local ranks, so the highest is " +
                        std::to_string(job.local_size - 1));
  return planned;
}

}  // namespace fabric::run
