#include <fabric/plugins/environments/kubeflow.h>

#include "plugins/environments/checks.h"

namespace fabric {
namespace {

RankInfo read_kubeflow(const EnvReader& env) {
  const std::string who = "the environment 'kubeflow'";
  RankInfo info{.source = "kubeflow"};
  info.world_size = env.require_int("WORLD_SIZE", who);
  info.rank = env.require_int("RANK", who);
  check_index("RANK", info.rank, "WORLD_SIZE", info.world_size);
  info.node_rank = info.rank;
  info.num_nodes = info.world_size;
  info.local_world_size = 1;
  info.main_address = env.require("MASTER_ADDR", who);
  env.require("MASTER_PORT", who);
  info.main_port = port_or(env, "MASTER_PORT", 0);
  info.job = job_name(env);
  return info;
}

}  // namespace

KubeflowEnvironment::KubeflowEnvironment(const EnvReader& env) : ExternalEnvironment(read_kubeflow(env)) {}

}  // namespace fabric
