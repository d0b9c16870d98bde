#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <c10/util/ArrayRef.h>

#include <fabric/export.h>

namespace fabric::detail {

/// Thrown out of a job that notices that the pool stops.
struct Stopped {};

/// A length of time in seconds, for a message: "1.5 s".
FABRIC_API std::string in_seconds(std::chrono::duration<double> time);

/// Threads that make batches ahead of the one that uses them. Batch b is made by worker b % workers in slot b % slots,
/// so that who does what never depends on timing. One thread owns the pool and calls everything but the work itself.
class FABRIC_API WorkerPool {
 public:
  struct Job {
    std::size_t batch = 0;
    std::size_t slot = 0;
    c10::ArrayRef<std::size_t> indices;
  };
  /// Makes one batch into a slot; checks `stop` between samples and throws Stopped when it is set.
  using Work = std::function<void(int worker, const Job& job, const std::atomic<bool>& stop)>;

  /// `slots` is a multiple of `workers`. `patience`: how long the end waits for a sample that is being made.
  WorkerPool(int workers, std::size_t slots, std::chrono::duration<double> patience, Work work);
  /// Stops.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// True when the slot for `batch` is free.
  bool has_room(std::size_t batch) const;
  /// Room for the indices of `batch`, kept until its slot is free again.
  std::vector<std::size_t>& index_buffer(std::size_t batch);
  void submit(std::size_t batch, c10::ArrayRef<std::size_t> indices);
  /// Waits until `batch`, or without one whichever comes first, is made. Nothing when `timeout` passed (zero: no
  /// limit).
  std::optional<Job> wait(std::optional<std::size_t> batch, std::chrono::duration<double> timeout);
  /// The exception that ended the job, if any.
  std::exception_ptr error(std::size_t slot) const;
  /// Frees the slot.
  void release(std::size_t slot);
  /// Ends the threads after the sample that each is making; nothing may be submitted any more. A thread that makes one
  /// for longer than the pool's patience, or that already timed out, is left to itself with a warning, and the answer
  /// is false.
  bool stop();
  /// Expires when neither the pool nor any of its threads is left.
  std::weak_ptr<const void> life() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fabric::detail
