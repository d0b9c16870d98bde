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

#include "fabric/base/registry/registry_internal.h"
#include "plugins/environments/checks.h"

namespace fabric {
namespace {

struct EnvironmentKind {
  MakeEnvironment make;
  DetectEnvironment detect;
};

template <class Environment>
std::shared_ptr<ClusterEnvironment> make_external(const std::shared_ptr<EnvReader>& env) {
  return std::make_shared<Environment>(*env);
}

// Open MPI's variables are looked at first: they may contradict those of srun, which is an error.
bool detect_slurm(const EnvReader& env) {
  MpiEnvironment::detect(env);
  return SlurmEnvironment::detect(env);
}

constexpr int kBuiltInEnvironments = 7;

// In the order of precedence.
Registry<EnvironmentKind>& environment_registry() {
  static Registry<EnvironmentKind> all(
      "environment",
      {{"torchelastic", {make_external<TorchElasticEnvironment>, TorchElasticEnvironment::detect}, "torchrun"},
       {"slurm", {make_external<SlurmEnvironment>, detect_slurm}, "srun"},
       {"lsf", {make_external<LsfEnvironment>, LsfEnvironment::detect}, "jsrun in a job of LSF"},
       {"mpi", {make_external<MpiEnvironment>, MpiEnvironment::detect}, "mpirun of Open MPI"},
       {"pmi", {make_external<PmiEnvironment>, PmiEnvironment::detect}, "launchers of MPICH, Intel MPI, Flux and PALS"},
       {"kubeflow", {make_external<KubeflowEnvironment>, {}}, "Kubeflow's training operator; by name only"},
       {"fabric",
        {[](const std::shared_ptr<EnvReader>& env) { return std::make_shared<FabricEnvironment>(env); }, {}},
        "our own launcher, or ranks that a program starts itself"}});
  return all;
}

std::shared_ptr<ClusterEnvironment> make_known(const std::string& name, const EnvironmentKind& kind,
                                               const std::shared_ptr<EnvReader>& env) {
  auto environment = kind.make(env);
  if (!environment) throw MisuseError("the function registered for environment '" + name + "' returned nothing");
  return environment;
}

}  // namespace

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
  info.spare_ports = spare_ports();
  info.job = job();
  info.restart_count = restart_count();
  info.store_is_external = store_is_external();
  info.source = name();
  return info;
}

std::shared_ptr<ClusterEnvironment> detect_environment(std::shared_ptr<EnvReader> env) {
  auto kinds = environment_registry().entries();
  // Those of the program's own first: who brings one along means it.
  std::rotate(kinds.begin(), kinds.begin() + kBuiltInEnvironments, kinds.end());
  for (const auto& [name, kind, description] : kinds)
    if (kind.detect && kind.detect(*env)) return make_known(name, kind, env);
  return std::make_shared<FabricEnvironment>(env);
}

void mention_unused_launchers(const EnvReader& env) {
  warn_of_unknown_launcher(env);
  hint_at_srun(env);
}

std::shared_ptr<ClusterEnvironment> make_environment(const std::string& name, std::shared_ptr<EnvReader> env) {
  auto [known, kind, description] = environment_registry().get(name);
  return make_known(known, kind, env);
}

void register_environment(const std::string& name, MakeEnvironment make, DetectEnvironment detect,
                          bool override_existing, std::string description) {
  environment_registry().add(name, {std::move(make), std::move(detect)}, override_existing, std::move(description));
}

std::vector<std::string> available_environments() { return environment_registry().names(); }

}  // namespace fabric
