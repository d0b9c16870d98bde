#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include <fabric/export.h>

namespace fabric::collectives {

/// A send or receive under way.
class PendingTransfer {
 public:
  virtual ~PendingTransfer() = default;
  virtual bool done() = 0;
  /// Throws TimeoutError naming the rank that did not come.
  virtual void wait() = 0;
  virtual int source() const = 0;
};

/// Ranks that exchange memory: what a backend of our own is built on (communicator_backend.h makes LibTorch's view of
/// it). Used by one thread. Everything but send and receive is collective, runs in the calling thread and returns when
/// the result is there. Ranks that come with different operations get a MismatchError each, where the communicator can
/// tell; a rank that does not come is a TimeoutError with its name.
class FABRIC_API Communicator {
 public:
  using Op = c10d::ReduceOp::RedOpType;

  virtual ~Communicator() = default;
  /// "MPI": for messages.
  virtual const char* what() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Whether a duplicate may be used by another thread at the same time.
  virtual bool allows_threads() const = 0;
  virtual std::unique_ptr<Communicator> duplicate() = 0;
  /// Of some of the ranks, ascending, which alone call it, with the same tag. Null: it is made anew instead.
  virtual std::unique_ptr<Communicator> subset(const std::vector<int>& ranks, int tag) = 0;
  /// Also for the communicators that are made of this one afterwards. Any thread may call it.
  virtual void set_timeout(std::chrono::milliseconds timeout) = 0;
  /// Makes waits of other ranks for this one fail.
  virtual void break_connections() {}

  /// Whether all ranks came with this mark. After false the caller has to exchange lines (mismatch_lines.h), as ranks
  /// that came with another operation than this do.
  virtual bool agree(std::int64_t mark, const char* operation) = 0;
  virtual void barrier() = 0;
  // Counts in items of `type`. AVG adds (of kBool: takes the smallest), and the caller divides. Throws MisuseError for
  // what local_reduction.h does not know either.
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
  virtual std::unique_ptr<PendingTransfer> send(const at::Tensor& tensor, int rank, int tag) = 0;
  /// `rank` -1: from any.
  virtual std::unique_ptr<PendingTransfer> receive(const at::Tensor& tensor, int rank, int tag) = 0;
  /// Memory that the other ranks reach best; by default ordinary memory.
  virtual at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
};

}  // namespace fabric::collectives
