#pragma once
// Ranks for a measurement, forked out of a process that has LibTorch loaded and has run nothing yet, and what they are
// asked about their memory.

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

#include "tests/support/free_port.h"

namespace bench {

/// Figures that ranks leave behind for the process that started them.
template <class Figures>
class Left {
 public:
  Left()
      : memory_(static_cast<Figures*>(
            mmap(nullptr, sizeof(Figures) * kMost, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    if (memory_ == MAP_FAILED) throw std::runtime_error("no memory for the ranks' figures");
  }
  ~Left() { munmap(memory_, sizeof(Figures) * kMost); }
  Left(const Left&) = delete;
  Left& operator=(const Left&) = delete;
  Figures& of(int rank) { return memory_[rank]; }

 private:
  static constexpr std::size_t kMost = 8;
  Figures* memory_;
};

/// Runs `work` in that many processes with the variables of ranks; throws where one fails.
inline void in_ranks(int ranks, const std::function<void(int rank)>& work) {
  const auto count = std::to_string(ranks), port = std::to_string(free_port());
  std::fflush(nullptr);
  for (int rank = 0; rank < ranks; ++rank) {
    if (fork() != 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    setenv("MASTER_PORT", port.c_str(), 1);
    for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) setenv(name, count.c_str(), 1);
    for (const char* name : {"RANK", "LOCAL_RANK"}) setenv(name, std::to_string(rank).c_str(), 1);
    int code = 0;
    try {
      work(rank);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
      code = 1;
    }
    std::fflush(nullptr);
    _exit(code);
  }
  bool failed = false;
  for (int status; wait(&status) > 0;) failed |= status != 0;
  if (failed) throw std::runtime_error("a rank failed");
}

/// Resident bytes of this process, those that it shares with others by its part of them.
inline double proportional_bytes() {
  std::ifstream file("/proc/self/smaps_rollup");
  std::string word;
  while (file >> word)
    if (word == "Pss:") {
      double kilobytes = 0;
      file >> kilobytes;
      return kilobytes * 1024;
    }
  throw std::runtime_error("the kernel does not tell the proportional set size");
}

/// Looks at this process's memory every few milliseconds while it lives.
class PeakMemory {
 public:
  PeakMemory() : thread_([this] { look(); }) {}
  ~PeakMemory() {
    ended_ = true;
    thread_.join();
  }
  double bytes() const { return most_; }

 private:
  void look() {
    while (!ended_) {
      most_ = std::max(most_.load(), proportional_bytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  std::atomic<bool> ended_ = false;
  std::atomic<double> most_ = 0;
  std::thread thread_;
};

inline std::int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

}  // namespace bench
