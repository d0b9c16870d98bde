#include "plugins/collectives/shm/bell.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace fabric::collectives {
namespace {

constexpr int kSpins = 400, kSpinsWhereCrowded = 30;

}  // namespace

Bell::Bell(int rank, int size, void* memory)
    : rank_(rank), size_(size), spins_(kSpins), shared_(static_cast<Shared*>(memory)) {
  static_assert(sizeof(Shared) == kBytes && std::atomic<std::uint32_t>::is_always_lock_free);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  sched_getaffinity(0, sizeof mine, &mine);  // fails where there are more than 1024: then ranks count as crowded
  for (std::size_t word = 0; word < kMaskWords; ++word) {
    std::uint64_t bits = 0;
    for (std::size_t bit = 0; bit < 64; ++bit)
      if (CPU_ISSET(64 * word + bit, &mine)) bits |= std::uint64_t{1} << bit;
    shared_->processors[word].fetch_or(bits);
  }
}

void Bell::count_processors() {
  int count = 0;
  for (const auto& word : shared_->processors) count += __builtin_popcountll(word.load());
  spins_ = size_ > count ? kSpinsWhereCrowded : kSpins;
}

// Not the private kind: the word is known by the memory's file, whatever address it has in a process.
void Bell::wake(std::uint32_t bits) {
  shared_->rings.fetch_add(1);
  syscall(SYS_futex, &shared_->rings, FUTEX_WAKE_BITSET, INT_MAX, nullptr, nullptr, bits);
}

void Bell::wait(std::uint32_t seen, milliseconds most) {
  // The kind with bits takes a point in time.
  timespec until{};
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += most.count() / 1000;
  until.tv_nsec += most.count() % 1000 * 1'000'000;
  if (until.tv_nsec >= 1'000'000'000) {
    until.tv_nsec -= 1'000'000'000;
    ++until.tv_sec;
  }
  syscall(SYS_futex, &shared_->rings, FUTEX_WAIT_BITSET, seen, &until, nullptr, bit_of(rank_));
}

}  // namespace fabric::collectives
