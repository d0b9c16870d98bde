#include <fabric/plugins/environments/cluster_environment.h>

#include <algorithm>

#include <fabric/base/error.h>
#include <fabric/plugins/environments/fabric.h>
#include <fabric/plugins/environments/kubeflow.h>
#include <fabric/plugins/environments/lsf.h>
#include <fabric/plugins/environments/mpi.h>
#include <fabric/plugins/environments/pmi.h>
#include <fabric/plugins/environments/slurm.h>
#include <fabric/plugins/environments/torchelastic.h>

#include "plugins/environments/checks.h"

namespace fabric {

void ClusterEnvironment::validate_settings(int devices, int num_nodes) const {
  if (!creates_processes_externally()) return;
  auto source = "the environment '" + name() + "'";
  if (devices == 1 && has_device_per_rank())
    check_node_count(source, this->num_nodes(), num_nodes);
  else
    check_product(source, world_size(), devices, num_nodes);
}

RankInfo ClusterEnvironment::rank_info() const {
  RankInfo info;
  info.world_size = world_size();
  info.rank = global_rank();
  info.local_rank = local_rank();
  info.node_rank = node_rank();
  info.num_nodes = std::max({num_nodes(), info.node_rank + 1, 1});
  int local = local_world_size();
  info.local_world_size = local > 0 ? local : std::max(info.world_size / info.num_nodes, 1);
  info.main_address = main_address();
  info.main_port = main_port();
  info.restart_count = restart_count();
  info.store_is_external = store_is_external();
  info.source = name();
  return info;
}

std::shared_ptr<ClusterEnvironment> detect_environment(std::shared_ptr<EnvReader> env) {
  if (TorchElasticEnvironment::detect(*env)) return std::make_shared<TorchElasticEnvironment>(*env);
  bool mpi = MpiEnvironment::detect(*env);
  if (SlurmEnvironment::detect(*env)) return std::make_shared<SlurmEnvironment>(*env);
  if (LsfEnvironment::detect(*env)) return std::make_shared<LsfEnvironment>(*env);
  if (mpi) return std::make_shared<MpiEnvironment>(*env);
  if (PmiEnvironment::detect(*env)) return std::make_shared<PmiEnvironment>(*env);
  return std::make_shared<FabricEnvironment>(env);
}

void mention_unused_launchers(const EnvReader& env) {
  warn_of_unknown_launcher(env);
  hint_at_srun(env);
}

std::shared_ptr<ClusterEnvironment> make_environment(const std::string& name, std::shared_ptr<EnvReader> env) {
  if (name == "fabric") return std::make_shared<FabricEnvironment>(env);
  if (name == "torchelastic") return std::make_shared<TorchElasticEnvironment>(*env);
  if (name == "slurm") return std::make_shared<SlurmEnvironment>(*env);
  if (name == "lsf") return std::make_shared<LsfEnvironment>(*env);
  if (name == "mpi") return std::make_shared<MpiEnvironment>(*env);
  if (name == "pmi") return std::make_shared<PmiEnvironment>(*env);
  if (name == "kubeflow") return std::make_shared<KubeflowEnvironment>(*env);
  std::string known;
  for (const auto& other : available_environments()) known += (known.empty() ? "" : ", ") + other;
  throw ConfigError("unknown environment '" + name + "'; known are " + known);
}

std::vector<std::string> available_environments() {
  return {"fabric", "torchelastic", "slurm", "lsf", "mpi", "pmi", "kubeflow"};
}

}  // namespace fabric
