#pragma once

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// Ranks started by Open MPI's mpirun, or by `srun --mpi=pmix` when chosen by name. Reads variables only and never
/// initialises MPI. MASTER_ADDR and MASTER_PORT are used if given (`mpirun -x MASTER_ADDR=… -x MASTER_PORT=…`); without
/// them the main address is empty and the port 0, and process groups that need a store let rank 0 tell them over MPI.
/// mpirun does not tell the node's index: NODE_RANK if exported, else rank / ranks per node, which holds for the
/// default mapping and is for display only.
class FABRIC_API MpiEnvironment : public ExternalEnvironment {
 public:
  explicit MpiEnvironment(const EnvReader& env = *process_env());
  /// True under mpirun with more than one rank. Throws ConfigError when srun started several tasks that Open MPI sees
  /// as separate jobs of one.
  static bool detect(const EnvReader& env);
};

}  // namespace fabric
