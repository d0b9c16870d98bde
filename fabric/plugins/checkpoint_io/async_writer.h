#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <unordered_set>
#include <utility>

#include <fabric/base/value.h>

namespace fabric {

/// Writes checkpoints beside the training, one after another, from a copy in host memory that is kept and used again.
/// Driven by one thread.
class FABRIC_API AsyncWriter {
 public:
  /// Something that is being written.
  class FABRIC_API Job {
   public:
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;
    /// As `settle`.
    ~Job();
    /// `wait` would return at once.
    bool ended() const;
    /// Throws what the writing threw, the first time it is called.
    void wait();
    /// Waits; logs a failure.
    void settle() noexcept;

   private:
    friend class AsyncWriter;
    struct Impl;
    explicit Job(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
  };
  using Write = std::function<void(const Value& copy)>;
  /// What is not copied before `start` returns.
  struct Kept {
    /// Tensors that nobody changes any more, which need no copy.
    std::unordered_set<const void*> settled = {};
    /// Storages whose tensors stay as they are until `await_copy` is called: the thread copies them. One that has
    /// changed nevertheless fails the job (CheckpointError); LibTorch counts changes.
    std::unordered_set<const void*> unchanging = {};
  };

  AsyncWriter();
  AsyncWriter(const AsyncWriter&) = delete;
  AsyncWriter& operator=(const AsyncWriter&) = delete;
  /// Waits for the job in flight.
  ~AsyncWriter();
  /// Waits for the job before, copies the tensors of `values` and returns; `write` runs with the copy in a thread of
  /// its own.
  std::shared_ptr<Job> start(const Value& values, Write write, const Kept& kept);
  std::shared_ptr<Job> start(const Value& values, Write write) { return start(values, std::move(write), Kept()); }
  /// Before what is `unchanging` changes: until it has been copied. Costs a comparison where nothing is to be copied.
  void await_copy() noexcept {
    if (copying_.load(std::memory_order_acquire)) wait_for_copy();
  }
  /// Until nothing is being written; a failure stays with its job.
  void finish() noexcept;

 private:
  void wait_for_copy() noexcept;
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::atomic<bool> copying_ = false;
};

}  // namespace fabric
