#pragma once

#include "launcher/run/options.h"

namespace fabric::run {

/// `--mpi`: the same job with mpirun as its one worker, so that nothing survives here either. Open MPI's own ways are
/// taken care of: more ranks than cores, binding that would put all threads of a rank on one core, and root.
/// Throws UnavailableError when there is no mpirun.
Options with_mpirun(Options options, const EnvReader& env);

}  // namespace fabric::run
