#pragma once

#include <sys/types.h>

#include <string>

#include "launcher/os/descriptor.h"

namespace fabric::run {

/// A cgroup (version 2) of this job. What is in it can be killed as a whole, even when all who watched over it were
/// killed at one blow: a small process outside of it, the janitor, waits for the launcher's end and empties it.
class Cgroup {
 public:
  /// Makes the group below the one of this process, and its janitor. Without an own cgroup tree that may be written,
  /// nothing is made.
  Cgroup();
  ~Cgroup();
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;
  explicit operator bool() const { return static_cast<bool>(folder_); }
  /// For clone3; -1 without a group.
  int folder() const { return folder_.get(); }

 private:
  std::string path_;
  Descriptor folder_;
  pid_t janitor_ = -1;
};

/// Forks this process, which must have one thread, into a cgroup (-1: the same) and, if asked, into a PID namespace of
/// its own with a /proc to match. Returns as fork does; -1 leaves the reason in errno.
pid_t fork_contained(int cgroup, bool pid_namespace);
/// Called first in a child that is alone in a PID namespace. Throws LaunchError.
void set_up_namespace(uid_t user, gid_t group);

/// How often the kernel has killed a process of our memory cgroup, and of the whole machine, for want of memory.
struct OomCount {
  long own = 0, machine = 0;
};
OomCount count_oom_kills();

}  // namespace fabric::run
