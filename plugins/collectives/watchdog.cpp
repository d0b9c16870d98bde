#include "plugins/collectives/watchdog.h"

#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fabric/base/log.h>

#include "plugins/collectives/plain_number.h"

namespace fabric::collectives {
namespace {

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Never destroyed: its thread runs until the process ends.
struct Watchdog {
  std::mutex mutex;
  std::vector<const Watched*> all;

  static Watchdog& get() {
    static auto* watchdog = [] {
      auto* made = new Watchdog;
      std::thread([made] { made->run(); }).detach();
      return made;
    }();
    return *watchdog;
  }
  [[noreturn]] void run() {
    constexpr std::chrono::milliseconds kPeriod{200};
    while (true) {
      std::this_thread::sleep_for(kPeriod);
      std::lock_guard lock(mutex);
      auto now = now_ns();
      for (const auto* watched : all)
        if (watched->is_overdue(now)) end(*watched);
    }
  }
  [[noreturn]] void end(const Watched& overdue) const {
    overdue.report();
    for (const auto* watched : all) watched->unlink_shared_memory();
    _exit(Watched::kTimedOutExit);
  }
};

}  // namespace

Watched::Watched(int rank) : rank_(rank) {
  auto& watchdog = Watchdog::get();
  std::lock_guard lock(watchdog.mutex);
  watchdog.all.push_back(this);
}

Watched::~Watched() {
  auto& watchdog = Watchdog::get();
  std::lock_guard lock(watchdog.mutex);
  std::erase(watchdog.all, this);
}

Watched::Call::Call(Watched& watched, const char* operation, std::chrono::milliseconds timeout) : watched_(watched) {
  watched.operation_.store(operation, std::memory_order_relaxed);
  watched.timeout_ms_.store(timeout.count(), std::memory_order_relaxed);
  watched.deadline_.store(now_ns() + timeout.count() * 1'000'000, std::memory_order_release);
}

void Watched::owns_shared_memory(std::string name) {
  std::lock_guard lock(Watchdog::get().mutex);
  shared_memory_ = std::move(name);
}

bool Watched::is_overdue(std::int64_t now) const {
  auto deadline = deadline_.load(std::memory_order_acquire);
  return deadline != 0 && now >= deadline;
}

void Watched::report() const {
  log::error("rank " + std::to_string(rank_) + ": " + operation_.load() + " timed out after " +
             plain_number(timeout_ms_.load() / 1000.0) +
             " s inside MPI: another rank did not come, or ended. MPI cannot take the call back, so this process ends");
}

void Watched::unlink_shared_memory() const {
  if (!shared_memory_.empty()) shm_unlink(shared_memory_.c_str());
}

}  // namespace fabric::collectives
