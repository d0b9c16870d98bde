#pragma once

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// One process per pod, as Kubeflow's training operator sets them up: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
/// all required; the local rank is 0 and the node is the rank. Never detected, since other platforms set the same
/// variables.
class FABRIC_API KubeflowEnvironment : public ExternalEnvironment {
 public:
  explicit KubeflowEnvironment(const EnvReader& env = *process_env());
};

}  // namespace fabric
