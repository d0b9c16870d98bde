#pragma once

#include "launcher/run/guard/guardian.h"

namespace fabric::run {

/// What the launcher asks of the guardian.
struct Request {
  enum Kind : int { signal_processes, signal_groups, kill_all };
  Kind kind = kill_all;
  int number = 0;
};

/// The life of the guardian, in the process that was forked for it.
[[noreturn]] void live_as_guardian(const std::vector<WorkerStart>& workers, const GuardianOptions& options, int socket,
                                   int launcher);

/// Starts one worker by vfork and exec. Returns its pid, or -1 with `error` and `stage` set.
pid_t start_worker(const WorkerStart& worker, const GuardianOptions& options, int& error, Event::Stage& stage);

}  // namespace fabric::run
