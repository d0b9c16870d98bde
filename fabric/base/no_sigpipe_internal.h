#pragma once

#include <signal.h>

#include <cerrno>
#include <ctime>

namespace fabric {

/// While it lives, a pipe whose reader is gone is an error of this thread's writes and no reason for the process to
/// end. What the program itself does about SIGPIPE stays. May be used in a signal handler.
class NoSigpipe {
 public:
  NoSigpipe() {
    sigset_t pending;
    sigemptyset(&only_);
    sigaddset(&only_, SIGPIPE);
    was_pending_ = sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &only_, &before_);
  }
  ~NoSigpipe() {
    const int reason = errno;
    const timespec now{};
    while (!was_pending_ && sigtimedwait(&only_, nullptr, &now) < 0 && errno == EINTR) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = reason;
  }
  NoSigpipe(const NoSigpipe&) = delete;
  NoSigpipe& operator=(const NoSigpipe&) = delete;

 private:
  sigset_t only_, before_;
  bool was_pending_;
};

}  // namespace fabric
