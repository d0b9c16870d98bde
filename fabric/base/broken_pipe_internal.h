#pragma once

#include <signal.h>
#include <time.h>

namespace fabric {

/// Blocks SIGPIPE in this thread for its lifetime, and takes one that came meanwhile: a write to a connection whose
/// other side is gone is an error and not the end of the process. The program's own handling of the signal stays as it
/// is. Threads that are started meanwhile never see the signal.
class IgnoreBrokenPipe {
 public:
  IgnoreBrokenPipe() {
    sigset_t pending, pipe = pipe_alone();
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before_);
  }
  ~IgnoreBrokenPipe() {
    sigset_t pipe = pipe_alone();
    timespec now{};
    if (!was_pending_) sigtimedwait(&pipe, nullptr, &now);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  IgnoreBrokenPipe(const IgnoreBrokenPipe&) = delete;
  IgnoreBrokenPipe& operator=(const IgnoreBrokenPipe&) = delete;

 private:
  static sigset_t pipe_alone() {
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    return pipe;
  }
  sigset_t before_;
  bool was_pending_;
};

}  // namespace fabric
