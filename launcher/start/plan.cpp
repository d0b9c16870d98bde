#include "launcher/start/plan.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include <fabric/base/error.h>

#include "fabric/base/processors/container_limits_internal.h"

namespace fabric {
namespace {

void check(const Launcher::Config& config) {
  auto refuse = [](const std::string& name, auto value, const std::string& allowed) {
    throw ConfigError("launcher setting " + name + " is " + std::to_string(value) + ", but must be " + allowed);
  };
  if (config.num_processes < 1) refuse("num_processes", config.num_processes, "at least 1");
  if (config.num_nodes < 1) refuse("num_nodes", config.num_nodes, "at least 1");
  if (config.node_rank < 0 || config.node_rank >= config.num_nodes)
    refuse("node_rank", config.node_rank, "from 0 to num_nodes - 1, that is " + std::to_string(config.num_nodes - 1));
  if (config.main_port < 0 || config.main_port > 65535)
    refuse("main_port", config.main_port, "0 or a port up to 65535");
  if (!(config.grace_seconds >= 0)) refuse("grace_seconds", config.grace_seconds, "0 or more");
}

std::string fresh_job_id() {
  std::random_device random;
  char text[17];
  std::snprintf(text, sizeof text, "%08x%08x", random(), random());
  return text;
}

int allowed_cpus() {
  cpu_set_t set;
  const int allowed = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::min(allowed, container::processors().value_or(allowed));
}

}  // namespace

LaunchPlan::LaunchPlan(const Launcher::Config& config, const EnvReader& env) : config_(config) {
  check(config);
  if (config.main_address == Launcher::Config().main_address)
    config_.main_address = env.get_or("MASTER_ADDR", config.main_address);
  for (const char* name : {"MASTER_PORT", "STANDALONE_PORT"})
    if (config_.main_port == 0) config_.main_port = env.get_int(name, 1, 65535).value_or(0);
  threads_ = env.get_or("OMP_NUM_THREADS", std::to_string(std::max(allowed_cpus() / config.num_processes, 1)));
  // On one node nobody else has to know it beforehand.
  job_ = config.num_nodes > 1 ? env.get_or("FABRIC_JOB_ID", "") : fresh_job_id();
  if (config_.main_port == 0) {
    if (config.num_nodes > 1)
      throw ConfigError(
          "num_nodes is " + std::to_string(config.num_nodes) +
          ", but no main port is given: all nodes must use the same one. Set MASTER_PORT, and MASTER_ADDR to the "
          "address of node 0, on every node");
    reservation_.emplace();
    config_.main_port = reservation_->port();
  } else if (config.node_rank == 0) {
    if (auto owner = port_owner(config_.main_port))
      throw LaunchError("the main port " + std::to_string(config_.main_port) + " (MASTER_PORT) is taken by " + *owner +
                        ". End it, give another port, or give none to have a free one chosen");
  }
}

RankInfo LaunchPlan::rank(int local_rank) const {
  RankInfo info;
  info.world_size = config_.num_nodes * config_.num_processes;
  info.rank = config_.node_rank * config_.num_processes + local_rank;
  info.local_rank = local_rank;
  info.local_world_size = config_.num_processes;
  info.node_rank = config_.node_rank;
  info.num_nodes = config_.num_nodes;
  info.main_address = config_.main_address;
  info.main_port = config_.main_port;
  return info;
}

std::map<std::string, std::string> LaunchPlan::variables(int local_rank) const {
  auto info = rank(local_rank);
  auto node = std::to_string(info.node_rank);
  std::map<std::string, std::string> all{{"RANK", std::to_string(info.rank)},
                                         {"WORLD_SIZE", std::to_string(info.world_size)},
                                         {"LOCAL_RANK", std::to_string(info.local_rank)},
                                         {"LOCAL_WORLD_SIZE", std::to_string(info.local_world_size)},
                                         {"NODE_RANK", node},
                                         {"GROUP_RANK", node},
                                         {"GROUP_WORLD_SIZE", std::to_string(info.num_nodes)},
                                         {"MASTER_ADDR", info.main_address},
                                         {"MASTER_PORT", std::to_string(info.main_port)},
                                         {kLaunchedVariable, "1"}};
  if (!job_.empty()) all["FABRIC_JOB_ID"] = job_;
  return all;
}

std::optional<RankInfo> running_rank(const EnvReader& env) {
  auto local_rank = env.get_int("LOCAL_RANK");
  if (!local_rank) return std::nullopt;
  RankInfo info;
  info.local_rank = *local_rank;
  const std::string who = "a running rank (LOCAL_RANK is set)";
  info.rank = env.require_int("RANK", who);
  info.world_size = env.require_int("WORLD_SIZE", who);
  info.node_rank = env.get_int("NODE_RANK").value_or(env.get_int("GROUP_RANK").value_or(0));
  info.num_nodes = env.get_int("GROUP_WORLD_SIZE", 1).value_or(info.node_rank + 1);
  info.local_world_size = env.get_int("LOCAL_WORLD_SIZE", 1).value_or(std::max(info.world_size / info.num_nodes, 1));
  info.main_address = env.get_or("MASTER_ADDR", info.main_address);
  info.main_port = env.get_int("MASTER_PORT", 1, 65535).value_or(0);
  return info;
}

}  // namespace fabric
