#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fabric/export.h>

#include "plugins/collectives/shm/bell.h"

namespace fabric::collectives {

/// A barrier in memory that the ranks of one machine share: each notes there how many operations it has come to, and
/// waits for the others with a deadline and by name. Costs 0.1 to 0.2 µs where all come at once. Each rank may bring a
/// mark, which is compared, and a few bytes for the others to read.
///
/// Invariants: a rank's count of arrivals only grows, and only that rank writes it; the last of the ranks that come
/// finds all others there and rings, so that nobody sleeps through a meeting.
class FABRIC_API SharedMemoryBarrier {
 public:
  /// Of a new barrier: creates it under a name of its own. With `name` of another rank's barrier: opens that. Returns
  /// null when the system refuses. Call unlink() once all have opened it, so that nothing outlives the processes; the
  /// destructor of the rank that created it does so too.
  static std::unique_ptr<SharedMemoryBarrier> open(int rank, int size, const std::string& name = "");
  /// What a rank that waits long asks and does. Both may be empty.
  struct Others {
    /// Whether a rank can come no more.
    std::function<bool(int rank)> is_gone = {};
    /// Called again and again, from where meet is called.
    std::function<void()> meanwhile = {};
  };
  /// In memory that the ranks share already: bytes_for(size) of it, zero at first, which outlives the barrier.
  SharedMemoryBarrier(int rank, int size, void* memory, Others others);
  static std::size_t bytes_for(int size);
  ~SharedMemoryBarrier();
  SharedMemoryBarrier(const SharedMemoryBarrier&) = delete;
  SharedMemoryBarrier& operator=(const SharedMemoryBarrier&) = delete;

  const std::string& name() const { return name_; }
  void unlink();

  /// Notes that this rank came to its next operation and waits until the others did. Returns whether all of them came
  /// with the same `mark`. Throws TimeoutError naming the missing ranks, CollectiveError when another rank gave up or
  /// is gone.
  bool meet(std::int64_t mark, const char* operation, std::chrono::milliseconds timeout);

  /// Two numbers that this rank brings to the next meeting besides, and what a rank brought to the last one; where not
  /// all bring them, they are anything.
  void bring(std::int64_t first, std::int64_t second = 0);
  std::int64_t brought(int rank, int which = 0) const;

  /// This rank comes no more: whoever waits for it is told, where there is `is_gone`. The destructor does so too.
  void leave();
  bool has_left(int rank) const;
  /// Whether in a barrier's memory all ranks have left, so that it may be used for something else.
  static bool everybody_left(const void* memory, int size);

  int size() const { return size_; }
  /// What wakes ranks that wait here.
  Bell& bell() { return *bell_; }
  /// How many bytes a rank can bring. Falls with the number of ranks, so that all of them together stay in a cache.
  std::size_t capacity() const { return capacity_; }
  /// Where this rank puts what it brings to the next meeting.
  void* outbox() const { return box(count_ + 1, rank_); }
  /// What a rank brought to the last meeting; until the next one.
  const void* inbox(int rank) const { return box(count_, rank); }
  /// Meetings so far.
  std::uint64_t count() const { return count_; }
  /// How far apart the ranks' inboxes lie.
  std::size_t stride() const { return capacity_; }

 private:
  struct Line;
  SharedMemoryBarrier(int rank, int size);
  void take(void* memory);
  // Two for each rank, by the parity of the count, as with the marks.
  char* box(std::uint64_t turn, int rank) const {
    return boxes_ + ((turn & 1) * static_cast<std::size_t>(size_) + static_cast<std::size_t>(rank)) * capacity_;
  }
  std::size_t bytes() const;
  std::vector<int> missing() const;
  void announce(const char* operation, std::chrono::milliseconds waited, std::chrono::milliseconds timeout) const;
  void give_up(const char* operation, std::chrono::milliseconds waited);
  void require_nobody_gave_up(const char* operation) const;
  void require_all_alive(const char* operation) const;

  std::string name_;
  bool linked_ = false;
  void* owned_ = nullptr;
  std::optional<Bell> bell_;
  Others others_;
  int rank_ = 0;
  int size_ = 0;
  std::uint64_t count_ = 0;
  std::size_t capacity_ = 0;
  Line* lines_ = nullptr;
  char* boxes_ = nullptr;
};

}  // namespace fabric::collectives
