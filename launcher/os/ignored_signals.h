#pragma once

#include <signal.h>

#include <vector>

namespace fabric {

/// What the launcher ignores, so that a write that fails is an error of that write and not its death: a reader that is
/// gone, and a file that may not grow (`ulimit -f`).
inline constexpr int kIgnoredSignals[] = {SIGPIPE, SIGXFSZ};

/// From now on; returns those of them that were ignored before.
inline std::vector<int> ignore_signals() {
  std::vector<int> ignored;
  for (int number : kIgnoredSignals)
    if (signal(number, SIG_IGN) == SIG_IGN) ignored.push_back(number);
  return ignored;
}

}  // namespace fabric
