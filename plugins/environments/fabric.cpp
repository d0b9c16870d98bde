#include <fabric/plugins/environments/fabric.h>

#include <fabric/base/error.h>

#include "fabric/base/ports_internal.h"
#include "plugins/environments/checks.h"

namespace fabric {
namespace {

void check_running_ranks(const EnvReader& env) {
  auto rank = env.get_int("RANK");
  auto world = env.get_int("WORLD_SIZE");
  auto local = env.get_int("LOCAL_RANK");
  auto local_world = env.get_int("LOCAL_WORLD_SIZE");
  if (rank && world) check_index("RANK", *rank, "WORLD_SIZE", *world);
  if (local && local_world) check_index("LOCAL_RANK", *local, "LOCAL_WORLD_SIZE", *local_world);
  if (world && local_world && *local_world > *world)
    throw ConfigError("the environment variables LOCAL_WORLD_SIZE=" + std::to_string(*local_world) +
                      " and WORLD_SIZE=" + std::to_string(*world) +
                      " contradict each other: a node cannot have more ranks than the job");
  if (rank && world && *world > 1 && !local)
    throw ConfigError(
        "RANK=" + std::to_string(*rank) + " and WORLD_SIZE=" + std::to_string(*world) +
        " are set but LOCAL_RANK is not. Set LOCAL_RANK to the index of the process on its node; where each "
        "pod is one process, choose the environment 'kubeflow'; to start alone, unset RANK and WORLD_SIZE");
  if (local && (!rank || !world))
    throw ConfigError("LOCAL_RANK=" + std::to_string(*local) + " is set, as in a job whose ranks run already, but " +
                      (rank    ? "WORLD_SIZE is not"
                       : world ? "RANK is not"
                               : "RANK and WORLD_SIZE are not") +
                      ", so that every process would train alone as rank 0. Set all three, or unset LOCAL_RANK to "
                      "start alone");
  if (local && world.value_or(1) > 1)
    for (const char* name : {"MASTER_ADDR", "MASTER_PORT"}) env.require(name, "a job of several running ranks");
}

}  // namespace

FabricEnvironment::FabricEnvironment(std::shared_ptr<EnvReader> env) : env_(std::move(env)) {
  check_running_ranks(*env_);
}

int FabricEnvironment::running(const std::string& name) const {
  return env_->require_int(name, "a running rank (LOCAL_RANK is set)");
}

FabricEnvironment::~FabricEnvironment() = default;

bool FabricEnvironment::creates_processes_externally() const { return env_->has("LOCAL_RANK"); }

std::string FabricEnvironment::main_address() const { return env_->get_or("MASTER_ADDR", "127.0.0.1"); }

int FabricEnvironment::main_port() const {
  for (const char* name : {"MASTER_PORT", "STANDALONE_PORT"})
    if (env_->has(name)) return port_or(*env_, name, 0);
  if (!reservation_) reservation_ = std::make_unique<PortReservation>();
  return reservation_->port();
}

// RANK alone, or WORLD_SIZE alone, is left over from something else.
int FabricEnvironment::world_size() const {
  return creates_processes_externally() ? running("WORLD_SIZE") : world_size_;
}

int FabricEnvironment::global_rank() const { return creates_processes_externally() ? running("RANK") : rank_; }

int FabricEnvironment::local_rank() const { return env_->get_int("LOCAL_RANK").value_or(0); }

int FabricEnvironment::node_rank() const {
  return env_->get_int("NODE_RANK").value_or(env_->get_int("GROUP_RANK").value_or(0));
}

int FabricEnvironment::local_world_size() const {
  return creates_processes_externally() ? env_->get_int("LOCAL_WORLD_SIZE", 1).value_or(0) : 0;
}

int FabricEnvironment::num_nodes() const {
  return creates_processes_externally() ? env_->get_int("GROUP_WORLD_SIZE", 1).value_or(0) : 0;
}

int FabricEnvironment::restart_count() const { return env_->get_int("TORCHELASTIC_RESTART_COUNT").value_or(0); }

std::string FabricEnvironment::job() const { return job_name(*env_); }

bool FabricEnvironment::has_device_per_rank() const { return creates_processes_externally() && sees_one_device(*env_); }

}  // namespace fabric
