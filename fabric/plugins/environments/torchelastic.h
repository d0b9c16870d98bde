#pragma once

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// Ranks started by torchrun, known by TORCHELASTIC_RUN_ID. Needs RANK, WORLD_SIZE and LOCAL_RANK; the node index is
/// GROUP_RANK. Without MASTER_ADDR or MASTER_PORT it warns and takes 127.0.0.1 and 12910.
class FABRIC_API TorchElasticEnvironment : public ExternalEnvironment {
 public:
  explicit TorchElasticEnvironment(const EnvReader& env = *process_env());
  static bool detect(const EnvReader& env);
};

}  // namespace fabric
