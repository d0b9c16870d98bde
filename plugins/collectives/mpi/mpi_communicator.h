#pragma once

#include <memory>

#include "plugins/collectives/communicator/communicator.h"
#include "plugins/collectives/mpi/mpi_library.h"

namespace fabric::collectives {

/// A communicator over a duplicate of MPI's. Where one machine holds all ranks they meet at a barrier in shared memory
/// before each operation, so that a missing rank is a TimeoutError with its name, and ranks that come with different
/// operations get a MismatchError each. A call that MPI itself does not finish cannot be taken back: a watchdog says so
/// and ends the process, upon which mpirun ends the job.
std::unique_ptr<Communicator> open_mpi(const MpiOptions& options);

}  // namespace fabric::collectives
