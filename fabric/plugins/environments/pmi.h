#pragma once

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// A process started by MPICH's or Intel MPI's mpiexec, by MVAPICH, Flux or PALS. Rank and size come from their
/// variables. Where all ranks are on one node, they meet at 127.0.0.1 and a port that follows from the launcher's own
/// process; otherwise at MASTER_ADDR and MASTER_PORT, which the launcher has to hand to every rank, or at the first
/// host of a SLURM or PBS allocation.
class FABRIC_API PmiEnvironment : public ExternalEnvironment {
 public:
  explicit PmiEnvironment(const EnvReader& env);

  /// Several ranks, unless RANK, WORLD_SIZE and LOCAL_RANK say more.
  static bool detect(const EnvReader& env);
  /// One of Hydra's ranks (MPICH, Intel MPI), which inherit the variables of the srun that started Hydra's daemons.
  static bool is_hydra_rank(const EnvReader& env);
};

/// Warns when the variables of a launcher that is not known say that this process has peers.
FABRIC_API void warn_of_unknown_launcher(const EnvReader& env);

}  // namespace fabric
