#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/sim_device/byte_history.h"

namespace sim {

struct Block;

/// What was done since the start of the process.
struct Counters {
  std::uint64_t kernels = 0;          // operators that ran on a stream
  std::uint64_t host_reads = 0;       // times the host waited for a number: item(), a copy that blocks, equal()
  std::uint64_t host_waits = 0;       // times it waited for a stream, an event or a device
  std::uint64_t blocking_copies = 0;  // copies from the host that it waited for
};

/// The clocks of all streams and of the host, and what was found by them. Kernels run at once, in the calling thread;
/// an order that the program did not ask for so never shows in the numbers, and always in the clocks.
///
/// Moves of the clocks: an operator takes over what the host knows and counts its stream one on; an event is a copy of
/// its stream's clock; a wait takes over the event's clock; when the host waits, it takes over what it waited for.
class Order {
 public:
  static Order& instance();

  /// For everything here, for blocks and for what is pinned.
  std::recursive_mutex& mutex() { return mutex_; }
  const VectorClock& clock(Place place) const { return clocks_[static_cast<std::size_t>(place)]; }
  /// An operator begins on this stream; returns its access.
  Access begin(Place stream, const char* op);
  /// `place` comes after all that `clock` counts.
  void join(Place place, const VectorClock& clock);
  /// The same for the host; then what waits for it (memory, protected pages) is looked after.
  void host_learns(const VectorClock& clock);
  void when_host_learns(std::function<void()> action) { settle_ = std::move(action); }
  /// What an event that is recorded on `stream` now waits for.
  const VectorClock& event_clock(Place stream);

  /// Adds the access to the block's history and reports what it is not ordered after.
  void access(Block& block, std::size_t begin, std::size_t end, bool writes, const Access& now);
  void report(const std::string& finding);
  /// The host stands still; with SIM_BACKTRACE_WAITS set it is said where.
  void count_wait(std::uint64_t& counter);
  std::vector<std::string> take_findings();

  bool enabled = true;
  Counters counters;

 private:
  VectorClock& mine(Place place) { return clocks_[static_cast<std::size_t>(place)]; }

  std::recursive_mutex mutex_;
  std::array<VectorClock, kPlaces> clocks_;
  std::vector<std::string> findings_;
  std::function<void()> settle_;
};

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace sim
