#pragma once

#include <signal.h>

namespace fabric {

/// Blocks all signals in this thread for its lifetime. What is started meanwhile begins deaf: no handler of ours runs
/// in a child, and a thread takes no signal that is meant for the program.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockSignals() { restore(); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;
  void restore() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  const sigset_t& before() const { return before_; }

 private:
  sigset_t before_;
};

/// For a child that is to end when it is told to, whatever its parent blocks. System calls only.
inline void unblock_all() {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

}  // namespace fabric
