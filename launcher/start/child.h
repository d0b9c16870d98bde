#pragma once

#include <signal.h>
#include <sys/types.h>

#include <functional>
#include <optional>
#include <vector>

#include "launcher/os/descriptor.h"
#include "launcher/start/command.h"

namespace fabric {

/// A process that was started as a rank. It leads a session of its own and is killed when the thread that started it
/// dies.
struct Child {
  pid_t pid = -1;
  Descriptor process;  // a pidfd: readable once the child has ended
  Descriptor error;    // reads what the child writes to stderr
  Descriptor result;   // reads what the function of the rank returned; not open without one
};

struct ChildOptions {
  /// Signals blocked in the child.
  sigset_t mask;
  /// Descriptors that the child keeps through exec, under the same numbers.
  std::vector<int> kept;
};

/// Runs a program: stdin is /dev/null, stdout is ours, stderr a pipe. Throws LaunchError.
Child start_program(const Command& command, const ChildOptions& options);
/// Forks, and runs `body` in the child, which is given the write end for its result and ends with the code returned.
Child start_function(const std::function<int(int result)>& body);
/// Forks this process, which must have one thread only; both go on from here. Empty in the child.
std::optional<Child> copy_process();
/// Signals of the calling thread.
sigset_t current_mask();

}  // namespace fabric
