#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "launcher/os/descriptor.h"

namespace fabric::run {

/// Where the threads of some processes are: by eu-stack or gdb if one is on the search path and answers in time, else
/// what the kernel says of each thread (state, wait channel, system call). Debuggers take seconds, so that a process of
/// its own asks them; it dies with the launcher.
class StackDump {
 public:
  using Clock = std::chrono::steady_clock;

  /// Begins. This process must have one thread. Throws LaunchError.
  explicit StackDump(const std::vector<pid_t>& pids);
  /// Ends it; a debugger lets go of what it looked at.
  ~StackDump();
  StackDump(const StackDump&) = delete;
  StackDump& operator=(const StackDump&) = delete;

  /// Readable when `advance` has something to do.
  int fd() const { return pipe_.get(); }
  /// When to wait no longer.
  Clock::time_point deadline() const { return deadline_; }
  /// Takes what is there; true once that is all.
  bool advance();
  /// What was found out so far, in the order of the processes; fewer than those when the time was too short.
  std::vector<std::string> take();

 private:
  pid_t pid_ = -1;
  Descriptor pipe_;
  Clock::time_point deadline_;
  std::string text_;  // of each process, ended by a zero
};

}  // namespace fabric::run
