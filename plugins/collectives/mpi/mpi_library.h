#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include <fabric/plugins/collectives/backend.h>

namespace fabric::collectives {

struct MpiOptions {
  /// Points to the caller's MPI_Comm; null: all ranks of the job, for which MPI is initialised if nobody did.
  const void* communicator = nullptr;
  std::chrono::milliseconds timeout{};
  /// As far as it is known before MPI says it; for messages.
  int rank = 0;
  /// All-reduces that the caller does not wait for and that have this many bytes run in a thread; 0: none do.
  std::int64_t overlap_bytes = 0;
  /// The most items that one call of MPI gets; larger operations are cut. MPI counts in int.
  std::int64_t most_items = std::int64_t{1} << 30;
};

/// Name and type of the maker of groups in libtorchfabric_mpi, which alone knows mpi.h. The communicator is duplicated,
/// so all its ranks have to call.
inline constexpr const char* kMakeMpi = "fabric_make_mpi_backend";
using MakeMpi = void (*)(const MpiOptions& options, std::shared_ptr<CollectiveBackend>& made);

}  // namespace fabric::collectives
