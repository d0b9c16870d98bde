#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace fabric::collectives {

/// What one communicator is doing, for the watchdog: who waits, in which operation, since when and until when.
class Watched {
 public:
  explicit Watched(int rank);
  ~Watched();
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  /// Marks a call that cannot be interrupted. When it lasts longer than the timeout, the watchdog reports rank and
  /// operation and ends the process with kTimedOutExit.
  class Call {
   public:
    Call(Watched& watched, const char* operation, std::chrono::milliseconds timeout);
    ~Call() { watched_.deadline_.store(0, std::memory_order_relaxed); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    Watched& watched_;
  };
  static constexpr int kTimedOutExit = 86;

  /// Shared memory that would outlive a process which the watchdog ends; empty: none any more.
  void owns_shared_memory(std::string name);

  // The watchdog's own, under its mutex.
  bool is_overdue(std::int64_t now) const;
  void report() const;
  void unlink_shared_memory() const;

 private:
  int rank_;
  std::string shared_memory_;  // under the watchdog's mutex
  std::atomic<const char*> operation_{nullptr};
  std::atomic<std::int64_t> timeout_ms_{0};
  std::atomic<std::int64_t> deadline_{0};  // nanoseconds of the steady clock; 0: no call
};

}  // namespace fabric::collectives
