#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "plugins/collectives/mpi/mpi_backend.h"

namespace fabric::collectives {

/// One duplicated communicator, used by one thread. Operations on memory; all but send and receive are collective, in
/// the calling thread, and return when the result is there. Before each of them the ranks meet on an ArrivalBoard where
/// one machine holds them all, so that a missing rank is a TimeoutError with its name, and ranks that come with
/// different operations get a MismatchError each. A call that MPI itself does not finish cannot be taken back: a
/// watchdog says so and ends the process, upon which mpirun ends the job.
class MpiLane {
 public:
  /// A point-to-point operation under way.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual bool done() = 0;
    /// Throws TimeoutError naming the rank that did not come.
    virtual void wait() = 0;
    virtual int source() const = 0;
  };
  using Op = c10d::ReduceOp::RedOpType;

  static std::unique_ptr<MpiLane> open(const MpiOptions& options);
  virtual ~MpiLane() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Whether MPI allows calls from several threads at once.
  virtual bool allows_threads() const = 0;
  virtual std::unique_ptr<MpiLane> duplicate() = 0;
  virtual std::unique_ptr<MpiLane> subset(const std::vector<int>& ranks, int tag) = 0;

  /// Also for the lanes that are made of this one afterwards. Any thread may call it.
  virtual void set_timeout(std::chrono::milliseconds timeout) = 0;
  /// Whether all ranks came with this mark. After false the caller has to all-reduce the lines of mismatch_lines.h, as
  /// ranks that came with another operation than this do.
  virtual bool agree(std::int64_t mark, const char* operation) = 0;
  virtual void barrier() = 0;
  // Counts in items of `type`, which has to be one that reduces() knows. AVG adds (of kBool: takes the smallest), and
  // the caller divides.
  virtual void all_reduce(void* data, std::int64_t count, at::ScalarType type, Op op) = 0;
  virtual void reduce(void* data, std::int64_t count, at::ScalarType type, Op op, int root) = 0;
  virtual void reduce_scatter(const void* input, void* output, std::int64_t count_each, at::ScalarType type, Op op) = 0;
  // Counts in bytes.
  virtual void broadcast(void* data, std::int64_t bytes, int root) = 0;
  virtual void all_gather(const void* input, void* output, std::int64_t bytes_each) = 0;
  virtual void gather(const void* input, void* output, std::int64_t bytes_each, int root) = 0;
  virtual void scatter(const void* input, void* output, std::int64_t bytes_each, int root) = 0;
  virtual void all_to_all(const void* input, const std::vector<std::int64_t>& sent, void* output,
                          const std::vector<std::int64_t>& received) = 0;
  virtual std::unique_ptr<Pending> send(const at::Tensor& tensor, int rank, int tag) = 0;
  /// `rank` -1: from any.
  virtual std::unique_ptr<Pending> receive(const at::Tensor& tensor, int rank, int tag) = 0;
};

}  // namespace fabric::collectives
