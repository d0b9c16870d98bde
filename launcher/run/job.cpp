#include "launcher/run/job.h"

#include <sys/random.h>
#include <unistd.h>

#include <cstdlib>

#include "launcher/run/job_secret.h"
#include "launcher/run/machine.h"
#include "plugins/environments/hostlist.h"

namespace fabric::run {
namespace {

std::string random_id() {
  unsigned char bytes[8] = {};
  [[maybe_unused]] auto filled = getrandom(bytes, sizeof bytes, 0);
  std::string text;
  for (unsigned char byte : bytes) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

// The one of the job, and others for the case that somebody sits on it.
std::vector<int> ports_from_job(const std::string& job, const std::string& step) {
  auto digits = job.substr(job.size() > 4 ? job.size() - 4 : 0);
  bool is_number = !digits.empty() && digits.find_first_not_of("0123456789") == std::string::npos;
  int offset = (is_number ? std::atoi(digits.c_str()) : 0) + std::atoi(step.c_str());
  std::vector<int> ports;
  for (int i = 0; i < 4; ++i) ports.push_back(15000 + (offset + i * 2503) % 10000);
  return ports;
}

void check_endpoint(const Options& options) {
  if (!options.endpoint_hosts.empty()) return;
  auto nodes = std::to_string(options.min_nodes);
  if (options.max_nodes != options.min_nodes) nodes += ":" + std::to_string(options.max_nodes);
  throw ConfigError(
      "--nnodes " + nodes +
      ": say where the nodes meet, the same on each of them: --rdzv-endpoint HOST:PORT, where HOST is one "
      "of them; or --master-addr HOST --master-port PORT of node 0, and on each node its --node-rank");
}

rendezvous::NodeSetup plan_rendezvous(const Options& options, const Job& job, const EnvReader& env) {
  rendezvous::NodeSetup setup;
  auto& settings = setup.settings;
  settings.min_nodes = options.min_nodes;
  settings.max_nodes = options.max_nodes;
  settings.max_restarts = options.max_restarts;
  settings.grace = options.grace_seconds;
  settings.timing = rendezvous::parse_timing(options.rdzv_conf);
  settings.run_id = job.id;
  settings.expected = options.expected_nodes;
  settings.started_together = options.started_together;
  setup.endpoint_hosts = options.endpoint_hosts;
  setup.ports = options.endpoint_ports;
  if (setup.endpoint_hosts.empty() && !options.master_addr.empty()) {
    // torchrun's static way: the agents meet where rank 0 is, and the store of the ranks gets another port.
    setup.endpoint_hosts = {options.master_addr};
    setup.ports = {options.master_port ? options.master_port : 29500};
  } else {
    settings.master_addr = options.master_addr;
    settings.master_port = options.master_port;
  }
  bool is_static = options.node_rank_given && options.min_nodes == options.max_nodes;
  setup.hosts = settings.timing.is_host ? settings.timing.is_host : options.hosts_rendezvous;
  if (!setup.hosts && is_static && options.rdzv_backend != "c10d") setup.hosts = options.node_rank == 0;
  setup.own.id = random_id() + random_id();
  setup.own.host = job.host;
  setup.own.pid = getpid();
  setup.own.local_size = job.local_size;
  setup.own.wanted_rank = options.node_rank_given ? options.node_rank : -1;
  setup.own.addresses = rendezvous::own_addresses(options.iface, options.local_addr);
  choose_secret(setup, options, env);
  return setup;
}

void check_filter(const Options& options, int local_size) {
  for (int rank : parse_ranks(options.local_ranks_filter, "--local-ranks-filter"))
    if (rank >= local_size)
      throw ConfigError("--local-ranks-filter " + options.local_ranks_filter + ": there are " +
                        std::to_string(local_size) + " local ranks, so the highest is " +
                        std::to_string(local_size - 1));
}

}  // namespace

Options complete_from_slurm(Options options, const EnvReader& env) {
  bool in_step = env.has("SLURM_STEP_ID") && env.has("SLURM_NODEID") && env.has("SLURM_NTASKS");
  bool is_alone = options.nodes_given && options.max_nodes == 1;
  if (!in_step || is_alone) return options;
  int nodes = env.get_int("SLURM_STEP_NUM_NODES", 1).value_or(env.get_int("SLURM_NNODES", 1).value_or(1));
  int tasks = env.require_int("SLURM_NTASKS", "srun");
  if (tasks > nodes)
    throw ConfigError("srun started " + std::to_string(tasks) + " launchers on " + std::to_string(nodes) +
                      " nodes. One a node is right: srun --ntasks-per-node=1 fabric run -n N …; or let srun start the "
                      "program itself, without fabric run");
  auto job = env.get_or("SLURM_JOB_ID", "0"), step = env.get_or("SLURM_STEP_ID", "0");
  if (!options.nodes_given) options.min_nodes = options.max_nodes = nodes;
  int node = env.require_int("SLURM_NODEID", "srun");
  if (!options.node_rank_given) options.node_rank = node;
  options.node_rank_given = true;
  if (options.run_id.empty()) options.run_id = job + "." + step;
  if (options.max_nodes == 1) return options;
  options.expected_nodes = expand_hostlist(env.get_or("SLURM_STEP_NODELIST", env.get_or("SLURM_NODELIST", "")));
  if (!options.endpoint_hosts.empty() || !options.master_addr.empty() || options.expected_nodes.empty()) return options;
  options.hosts_rendezvous = node == 0;
  options.endpoint_hosts = {options.expected_nodes.front()};
  // Names of nodes that are made up on one machine lead nowhere; the job's name tells whether another place is right.
  if (host_name(env) != host_name(MapEnv())) options.endpoint_hosts.push_back("localhost");
  if (auto launcher = env.get("SLURM_LAUNCH_NODE_IPADDR")) options.endpoint_hosts.push_back(*launcher);
  options.endpoint_ports = ports_from_job(job, step);
  return options;
}

PlannedJob plan_job(const Options& options, const EnvReader& env) {
  PlannedJob planned;
  auto& job = planned.job;
  bool is_several = options.max_nodes > 1 && options.mpi_ranks == 0;
  if (options.mpi_ranks > 0 && options.min_nodes != options.max_nodes)
    throw ConfigError("--mpi: mpirun's number of nodes does not change; give one number to --nnodes");
  job.id = !options.run_id.empty() ? options.run_id : is_several ? "none" : random_id();
  job.host = host_name(env);
  job.role = options.role;
  job.local_size = count_workers(options.nproc, env);
  job.max_restarts = options.max_restarts;
  check_filter(options, job.local_size);
  if (is_several) {
    if (options.master_addr.empty()) check_endpoint(options);
    planned.rendezvous = plan_rendezvous(options, job, env);
    return planned;
  }
  job.nodes = options.max_nodes;
  job.world_size = job.nodes * job.local_size;
  job.master_addr = options.master_addr;
  job.master_port = options.master_port;
  if (!options.endpoint_hosts.empty() && job.master_addr.empty()) job.master_addr = options.endpoint_hosts.front();
  if (options.endpoint_port_given && job.master_port == 0) job.master_port = options.endpoint_ports.front();
  if (job.master_addr.empty()) job.master_addr = "127.0.0.1";
  if (job.master_port == 0) {
    planned.port.emplace();
    job.master_port = planned.port->port();
  } else if (auto owner = port_owner(job.master_port)) {
    throw LaunchError("port " + std::to_string(job.master_port) + " is taken by " + *owner +
                      ". Give another --master-port, or none, and a free one is chosen");
  }
  return planned;
}

}  // namespace fabric::run
