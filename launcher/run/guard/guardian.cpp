#include "launcher/run/guard/guardian.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fabric/base/error.h>

#include "launcher/run/guard/containment.h"
#include "launcher/run/guard/guardian_process.h"

namespace fabric::run {

Guardian::Guardian(const std::vector<WorkerStart>& workers, const GuardianOptions& options) {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) above_stdio(-1, "the guardian");
  Descriptor theirs = above_stdio(ends[1], "the guardian");
  socket_ = above_stdio(ends[0], "the guardian");
  Descriptor launcher = require_pidfd(getpid());
  // Orphans of a guardian that was killed come to us.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  uid_t user = geteuid();
  gid_t group = getegid();
  std::fflush(nullptr);
  pid_ = fork_contained(options.cgroup, options.pid_namespace);
  if (pid_ < 0) {
    std::string hint = errno == EAGAIN  ? ". The limit of processes is reached; see ulimit -u"
                       : errno == EPERM ? ". This system gives users no namespaces; run without --pid-namespace"
                                        : "";
    throw LaunchError(std::string("cannot start the guardian of the workers: ") + std::strerror(errno) + hint);
  }
  if (pid_ == 0) {
    socket_.reset();
    if (options.pid_namespace) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      try {
        set_up_namespace(user, group);
      } catch (const LaunchError& error) {
        std::fprintf(stderr, "fabric: %s\n", error.what());
        _exit(125);
      }
    }
    // A copy of a connection of the launcher would keep it open, and on the launcher's list of what it watches.
    std::vector<int> kept{theirs.get(), launcher.get()};
    for (const auto& worker : workers) kept.insert(kept.end(), {worker.output, worker.error, worker.heartbeat});
    close_inherited(kept, true);
    live_as_guardian(workers, options, theirs.get(), launcher.get());
  }
  process_ = require_pidfd(pid_);
}

std::optional<Event> Guardian::next() {
  Event event;
  if (recv(socket_.get(), &event, sizeof event, 0) != static_cast<ssize_t>(sizeof event)) return std::nullopt;
  return event;
}

void Guardian::signal_workers(int number, bool groups) {
  Request request{groups ? Request::signal_groups : Request::signal_processes, number};
  send(socket_.get(), &request, sizeof request, MSG_NOSIGNAL);
}

void Guardian::kill_all() {
  Request request{Request::kill_all, SIGKILL};
  send(socket_.get(), &request, sizeof request, MSG_NOSIGNAL);
}

bool Guardian::wake() {
  siginfo_t info{};
  if (waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WNOHANG) != 0 || info.si_pid != pid_) return false;
  kill(pid_, SIGCONT);
  return true;
}

std::optional<int> Guardian::try_reap() {
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  return status;
}

}  // namespace fabric::run
