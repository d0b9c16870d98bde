#pragma once
// Processes that a test starts, and what becomes of them.

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "tests/support/ranks.h"

namespace ranks {

using Variables = std::map<std::string, std::string>;

struct Process {
  pid_t pid = -1;
  int output = -1;  // the end of a pipe that its stdout and stderr go into
  bool running = true;
  Outcome outcome;
};

/// Forks. Returns twice; in the new process, which dies with this one and leads a group of its own, the pid is 0 and
/// stdout and stderr lead to `output` of the other.
Process fork_process();
/// Forks and starts a program, with these variables besides those of this process.
Process start(const std::vector<std::string>& command, const Variables& variables);
/// Collects what the processes write until all have ended; kills the groups of those that are left at the timeout.
std::vector<Outcome> wait_all(std::vector<Process> processes, double timeout_seconds);

}  // namespace ranks
