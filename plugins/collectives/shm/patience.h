#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace fabric::collectives {

/// Waits politely: a few turns of the processor's own pause, then the scheduler's turn, then short sleeps, since who
/// waits milliseconds waits for a rank that is busy elsewhere and may need the core.
class Patience {
 public:
  using milliseconds = std::chrono::milliseconds;
  using steady_clock = std::chrono::steady_clock;

  explicit Patience(milliseconds timeout) : timeout_(timeout) {}
  /// False when the time is over.
  bool wait() {
    if (turns_ <= kSpins) ++turns_;  // no further: waits may last for days
    if (turns_ < kSpins) {
      pause();
      return true;
    }
    if (turns_ == kSpins) begin_ = steady_clock::now();
    auto waited = steady_clock::now() - begin_;
    if (waited > timeout_) return false;
    if (waited < kYielding)
      sched_yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(20));
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
  bool is_short() const { return turns_ <= kSpins; }
  milliseconds waited() const { return std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin_); }

 private:
  static constexpr int kSpins = 400;
  static constexpr milliseconds kYielding{3}, kLookEvery{100};
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  milliseconds timeout_;
  milliseconds next_look_{50};
  int turns_ = 0;
  bool announced_ = false;
  steady_clock::time_point begin_;
};

}  // namespace fabric::collectives
