#include <fabric/plugins/environments/torchelastic.h>

#include <fabric/base/log.h>

#include "plugins/environments/checks.h"

namespace fabric {
namespace {

RankInfo read_torchelastic(const EnvReader& env) {
  const std::string who = "torchrun's environment";
  RankInfo info{.source = "torchelastic"};
  info.world_size = env.require_int("WORLD_SIZE", who);
  info.rank = env.require_int("RANK", who);
  info.local_rank = env.require_int("LOCAL_RANK", who);
  info.local_world_size = env.get_int("LOCAL_WORLD_SIZE").value_or(0);
  info.node_rank = env.get_int("GROUP_RANK").value_or(0);
  info.num_nodes = env.get_int("GROUP_WORLD_SIZE").value_or(0);
  info.restart_count = env.get_int("TORCHELASTIC_RESTART_COUNT").value_or(0);
  info.store_is_external = env.get_or("TORCHELASTIC_USE_AGENT_STORE", "") == "True";
  check_index("RANK", info.rank, "WORLD_SIZE", info.world_size);
  if (info.local_world_size > 0) check_index("LOCAL_RANK", info.local_rank, "LOCAL_WORLD_SIZE", info.local_world_size);
  if (info.num_nodes > 0) check_index("GROUP_RANK", info.node_rank, "GROUP_WORLD_SIZE", info.num_nodes);
  if (!env.has("MASTER_ADDR"))
    log::warn_once(
        "TORCHELASTIC_RUN_ID is set but MASTER_ADDR is not; taking 127.0.0.1, which is right on one node only");
  if (!env.has("MASTER_PORT")) log::warn_once("TORCHELASTIC_RUN_ID is set but MASTER_PORT is not; taking 12910");
  info.main_address = env.get_or("MASTER_ADDR", "127.0.0.1");
  info.main_port = port_or(env, "MASTER_PORT", 12910);
  info.job = job_name(env, "run id " + env.get_or("TORCHELASTIC_RUN_ID", ""));
  if (!env.has("MASTER_PORT")) info.spare_ports = ports_beside(info.main_port, info.job);
  return info;
}

}  // namespace

TorchElasticEnvironment::TorchElasticEnvironment(const EnvReader& env)
    : ExternalEnvironment(read_torchelastic(env), sees_one_device(env)) {}

bool TorchElasticEnvironment::detect(const EnvReader& env) { return env.has("TORCHELASTIC_RUN_ID"); }

}  // namespace fabric
