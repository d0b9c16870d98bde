#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace fabric::collectives {

/// Where the ranks of one machine sleep until another one has done something: a word in shared memory that the system
/// waits on (futex), and how many do. Who rings while nobody sleeps only reads that number.
///
/// Invariants: whoever sleeps has counted itself before its last look at what it waits for, and whoever rings has done
/// that before it looks at the count, all four sequentially consistent: so either the sleeper sees it, or the ringer
/// sees the sleeper. The word changes with each ring, so that a ring between the last look and the sleep ends the
/// sleep. A rank that dies asleep stays counted, which costs rings a call of the system and nothing else.
class Bell {
 public:
  using milliseconds = std::chrono::milliseconds;

  /// `memory`: kBytes, shared and zero at first.
  Bell(int rank, int size, void* memory);
  static constexpr std::size_t kBytes = 192;

  /// Wakes all ranks that sleep.
  void ring() {
    if (shared_->sleepers.load() != 0) [[unlikely]]
      wake(~0u);
  }
  /// Wakes one, and perhaps a few others.
  void ring_for(int rank) {
    if (shared_->sleepers.load() != 0) [[unlikely]]
      wake(bit_of(rank));
  }
  /// Sleeps for `most` or until it is rung; not at all where `is_ready` says so once a ring could not be missed.
  template <class IsReady>
  void sleep(milliseconds most, IsReady&& is_ready) {
    Counted counted(*shared_);
    auto seen = shared_->rings.load();
    if (!is_ready()) wait(seen, most);
  }

  /// Once every rank has made its bell: how many turns of the processor's pause a wait may take before it gives the
  /// processor away. Few where the ranks have to share processors.
  void count_processors();
  int spins() const { return spins_; }

 private:
  static constexpr std::size_t kMaskWords = 16;  // 1024 processors
  struct Shared {
    alignas(64) std::atomic<std::uint32_t> rings;
    std::atomic<std::uint32_t> sleepers;
    std::atomic<std::uint64_t> processors[kMaskWords];  // that any rank may run on
  };
  struct Counted {
    explicit Counted(Shared& shared) : shared(shared) { shared.sleepers.fetch_add(1); }
    ~Counted() { shared.sleepers.fetch_sub(1); }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
    Shared& shared;
  };
  static std::uint32_t bit_of(int rank) { return 1u << (static_cast<unsigned>(rank) % 32); }
  void wake(std::uint32_t bits);
  void wait(std::uint32_t seen, milliseconds most);

  int rank_, size_, spins_;
  Shared* shared_;
};

}  // namespace fabric::collectives
