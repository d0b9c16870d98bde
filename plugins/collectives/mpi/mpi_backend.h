#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>

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

/// A group over MPI as the library sees it; lives in libtorchfabric_mpi, which alone knows mpi.h.
class MpiBackend : public c10d::Backend {
 public:
  using c10d::Backend::Backend;
  /// Whether all ranks gave the same mark; waits for all of them. After false the caller has to all-reduce the lines of
  /// mismatch_lines.h.
  virtual bool agree(std::int64_t mark, const char* operation) = 0;
  /// A group of some of the ranks, in ascending order; collective over these only, which give the same list and tag.
  virtual c10::intrusive_ptr<MpiBackend> subgroup(const std::vector<int>& ranks, int tag) = 0;
};

/// Name and type of libtorchfabric_mpi's maker of groups. The communicator is duplicated, so all its ranks have to
/// call.
inline constexpr const char* kMakeMpi = "fabric_make_mpi_backend";
using MakeMpi = void (*)(const MpiOptions& options, c10::intrusive_ptr<MpiBackend>& made);

}  // namespace fabric::collectives
