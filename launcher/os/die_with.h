#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

namespace fabric {

/// Called in a child: from now on it is killed when the thread that started it dies. False: that has happened already.
/// System calls only, so it may stand between fork and exec.
inline bool die_with(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  return getppid() == parent;
}

}  // namespace fabric
