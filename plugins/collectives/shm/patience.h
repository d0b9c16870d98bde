#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "plugins/collectives/shm/bell.h"

namespace fabric::collectives {

/// Waits politely: a few turns of the processor's own pause, then the scheduler's turn for a moment, then asleep until
/// another rank rings, since who waits longer waits for a rank that is busy elsewhere and may need the core.
class Patience {
 public:
  using milliseconds = std::chrono::milliseconds;
  using steady_clock = std::chrono::steady_clock;

  Patience(Bell& bell, milliseconds timeout) : bell_(bell), spins_(bell.spins()), timeout_(timeout) {}
  /// One turn; false when the time is over. `is_ready` is looked at once more before a sleep.
  template <class IsReady>
  bool wait(IsReady&& is_ready) {
    if (turns_ < spins_) {
      ++turns_;
      pause();
      return true;
    }
    if (turns_ == spins_) {
      ++turns_;  // no further: waits may last for days
      begin_ = steady_clock::now();
    }
    auto waited = steady_clock::now() - begin_;
    if (waited > timeout_) return false;
    if (waited < kYielding)
      sched_yield();
    else
      bell_.sleep(std::clamp(left(waited), milliseconds(1), kLongestSleep), is_ready);
    return true;
  }
  /// True once, when the wait is half over or has lasted long.
  bool is_to_announce() {
    constexpr milliseconds kLong{30'000};
    if (announced_ || is_short() || waited() < std::min(kLong, timeout_ / 2)) return false;
    announced_ = true;
    return true;
  }
  /// True now and then in a wait that lasts: time to see whether the others are still alive.
  bool is_to_look_around() {
    if (is_short() || waited() < next_look_) return false;
    next_look_ = waited() + kLookEvery;
    return true;
  }
  /// The processor is not given away yet.
  bool is_short() const { return turns_ <= spins_; }
  milliseconds waited() const { return std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin_); }

 private:
  static constexpr std::chrono::microseconds kYielding{100};
  // Somebody who died rings no more, and what a wait has to say is due at some time.
  static constexpr milliseconds kLookEvery{100}, kLongestSleep{100};
  milliseconds left(steady_clock::duration waited) const {
    return timeout_ - std::chrono::duration_cast<milliseconds>(waited);
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  Bell& bell_;
  int spins_;
  milliseconds timeout_;
  milliseconds next_look_{50};
  int turns_ = 0;
  bool announced_ = false;
  steady_clock::time_point begin_;
};

}  // namespace fabric::collectives
