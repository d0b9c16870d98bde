#pragma once

#include <sys/types.h>

#include <chrono>
#include <vector>

namespace fabric::run {

/// All processes below `root`, however deep, by their parents; zombies left out.
std::vector<pid_t> descendants(pid_t root);

/// Kills all processes below this one, which must be their subreaper, and reaps them. Repeats, since what is killed may
/// just have started more. False when some are still there after `limit` (a process that waits for a broken disk).
bool kill_descendants(std::chrono::milliseconds limit);

}  // namespace fabric::run
