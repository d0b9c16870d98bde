#pragma once
// The only file that sees mpi.h; for the sources of libtorchfabric_mpi.

#include <mpi.h>

#include <chrono>

namespace fabric::collectives {

/// Throws CollectiveError for a code that is none of success, and remembers that MPI failed.
void require_success(int code, const char* operation, int rank);
/// After this the process ends without MPI_Finalize, which would wait for the other ranks.
void remember_mpi_failure();
/// Initialises MPI unless somebody did, with threads allowed; finalises it then when the process ends well. Throws
/// MisuseError after MPI_Finalize.
void initialise_mpi(int rank, std::chrono::milliseconds timeout);

}  // namespace fabric::collectives
