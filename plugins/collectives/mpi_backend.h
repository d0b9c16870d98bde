#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace fabric::collectives {

/// A group over MPI as the library sees it; lives in libtorchfabric_mpi, which alone knows mpi.h.
class MpiBackend : public c10d::Backend {
 public:
  using c10d::Backend::Backend;
  /// A group of some of the ranks; collective over these only, which must give the same list and tag.
  virtual c10::intrusive_ptr<MpiBackend> subgroup(const std::vector<int>& ranks, int tag) = 0;
};

/// Name and type of libtorchfabric_mpi's maker of groups. `mpi_comm` points to the caller's MPI_Comm; null: all ranks
/// of the job, for which MPI is initialised if nobody did. The communicator is duplicated, so all its ranks have to call.
inline constexpr const char* kMakeMpi = "fabric_make_mpi_backend";
using MakeMpi = void (*)(const void* mpi_comm, std::chrono::milliseconds timeout, c10::intrusive_ptr<MpiBackend>& made);

}  // namespace fabric::collectives
