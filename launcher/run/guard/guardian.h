#pragma once

#include <sched.h>
#include <sys/resource.h>

#include <optional>
#include <string>
#include <vector>

#include "launcher/os/descriptor.h"

namespace fabric::run {

/// All that is needed to start one worker; the descriptors stay the caller's.
struct WorkerStart {
  std::string path;
  std::vector<std::string> arguments;  // [0] is the program's name
  std::vector<std::string> variables;  // NAME=VALUE
  std::string workdir;                 // empty: the current one
  int output = -1, error = -1;
  int heartbeat = -1;        // -1: none
  int heartbeat_number = 3;  // under which the worker has it
  std::optional<cpu_set_t> processors;
};

struct GuardianOptions {
  int cgroup = -1;
  bool pid_namespace = false;
  /// What the workers get, as it was before the launcher changed it.
  sigset_t mask;
  rlimit files;
  std::vector<int> ignored;  // of the signals that the launcher ignores, those that were ignored before
  /// Signals that stop the job; the guardian tells the launcher of them.
  std::vector<int> stop_on;
  /// Signals that the launcher passes on; the guardian is deaf to them.
  std::vector<int> forward;
  /// Removed by the guardian when the launcher is gone and cannot; empty: nothing.
  std::string temporary_folder;
};

/// One thing that the guardian tells the launcher. Fixed size, one per packet.
struct Event {
  enum Kind : int { started, start_failed, exited, signalled, all_gone };
  enum Stage : int { settle, folder, fork, exec, none };
  Kind kind = started;
  int worker = 0;
  int pid = 0;     // as the guardian sees it
  int status = 0;  // as of waitpid; errno of a failed start; the number of a signal
  Stage stage = none;
  long long nanoseconds = 0;  // of the monotonic clock
};

/// The parent of the workers. It leads a session of its own, is told of the launcher's death by the kernel, which also
/// lets it go on if it was stopped, and then kills all there is below it; when it dies itself the kernel kills the
/// workers, and what else they started becomes the launcher's.
class Guardian {
 public:
  /// Starts it and, through it, the workers, which it does one after the other. Throws LaunchError.
  Guardian(const std::vector<WorkerStart>& workers, const GuardianOptions& options);
  pid_t pid() const { return pid_; }
  /// Readable when `next` has something.
  int events() const { return socket_.get(); }
  /// Readable once it has ended.
  int process() const { return process_.get(); }
  std::optional<Event> next();

  /// Sends a signal to each worker that runs, or to its whole process group.
  void signal_workers(int number, bool groups);
  void kill_all();
  /// Lets it go on when somebody has stopped it; true then. Stopped, it could not act on our end.
  bool wake();
  /// Reaps it once it has ended, and returns its status; nothing if it runs.
  std::optional<int> try_reap();

 private:
  pid_t pid_ = -1;
  Descriptor socket_, process_;
};

}  // namespace fabric::run
