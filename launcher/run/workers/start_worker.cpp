#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>

#include "launcher/os/die_with.h"
#include "launcher/os/ignored_signals.h"
#include "launcher/os/signal_mask.h"
#include "launcher/run/guard/guardian_process.h"
#include "launcher/start/command.h"

namespace fabric::run {
namespace {

struct Prepared {
  const WorkerStart& worker;
  const GuardianOptions& options;
  std::vector<char*> arguments, variables;
  int input = -1;
  pid_t parent = -1;
};

struct Failure {
  int error = 0;
  Event::Stage stage = Event::none;
};

// Between vfork and exec: system calls only. False leaves the reason in errno.
bool settle_in(const Prepared& prepared) {
  if (!die_with(prepared.parent)) return errno = ESRCH, false;
  setsid();
  if (prepared.worker.processors) sched_setaffinity(0, sizeof(cpu_set_t), &*prepared.worker.processors);
  if (dup2(prepared.input, 0) < 0 || dup2(prepared.worker.output, 1) < 0 || dup2(prepared.worker.error, 2) < 0)
    return false;
  // Last: the number may be one of those that were needed until here.
  int from = prepared.worker.heartbeat, to = prepared.worker.heartbeat_number;
  if (from >= 0 && (from == to ? fcntl(to, F_SETFD, 0) != 0 : dup2(from, to) < 0)) return false;
  setrlimit(RLIMIT_NOFILE, &prepared.options.files);
  for (int number : kIgnoredSignals) {
    bool was_ignored = false;
    for (int other : prepared.options.ignored) was_ignored |= other == number;
    if (!was_ignored) signal(number, SIG_DFL);
  }
  sigprocmask(SIG_SETMASK, &prepared.options.mask, nullptr);
  return true;
}

// The reason goes through a pipe that closes by itself when the program runs; memory of parent and child is not one
// under every tool that watches them.
[[gnu::noinline]] pid_t vfork_and_exec(const Prepared& prepared, int report) {
  pid_t pid = vfork();
  if (pid != 0) return pid;
  const char* folder = prepared.worker.workdir.c_str();
  Failure failure;
  if (!settle_in(prepared)) {
    failure.stage = Event::settle;
  } else if (*folder && chdir(folder) != 0) {
    failure.stage = Event::folder;
  } else {
    execve(prepared.worker.path.c_str(), prepared.arguments.data(), prepared.variables.data());
    failure.stage = Event::exec;
  }
  failure.error = errno;
  [[maybe_unused]] auto written = write(report, &failure, sizeof failure);
  _exit(127);
}

}  // namespace

pid_t start_worker(const WorkerStart& worker, const GuardianOptions& options, int& error, Event::Stage& stage) {
  Prepared prepared{worker, options, exec_pointers(worker.arguments), exec_pointers(worker.variables)};
  prepared.input = open("/dev/null", O_RDONLY | O_CLOEXEC);
  prepared.parent = getpid();
  int ends[2] = {-1, -1};
  // The write end gets a number that the worker's heartbeats cannot have.
  int report = pipe2(ends, O_CLOEXEC) == 0 ? fcntl(ends[1], F_DUPFD_CLOEXEC, 16) : -1;
  if (report < 0) {
    error = errno;
    stage = Event::settle;
    for (int fd : {prepared.input, ends[0], ends[1]}) close(fd);
    return -1;
  }
  pid_t pid = -1;
  {
    BlockSignals blocked;
    pid = vfork_and_exec(prepared, report);
  }
  int fork_error = errno;
  for (int fd : {prepared.input, ends[1], report}) close(fd);
  Failure failure;
  bool failed = pid > 0 && read(ends[0], &failure, sizeof failure) == static_cast<ssize_t>(sizeof failure);
  close(ends[0]);
  if (pid > 0 && !failed) return pid;
  error = pid < 0 ? fork_error : failure.error;
  stage = pid < 0 ? Event::fork : failure.stage;
  return -1;
}

}  // namespace fabric::run
