#include "launcher/start/child.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include <fabric/base/error.h>

#include "launcher/os/die_with.h"
#include "launcher/os/signal_mask.h"

namespace fabric {
namespace {

// Everything the child touches between vfork and exec, prepared before.
struct ExecPlan {
  const char* path;
  char* const* arguments;
  char* const* variables;
  int input, error;
  const int* kept;
  std::size_t kept_count;
  const sigset_t* mask;
};

// Called in the child: only async-signal-safe calls. False: the parent is gone already.
bool settle_in(pid_t parent, int input, int error) {
  if (!die_with(parent)) return false;
  setsid();
  return dup2(input, 0) >= 0 && dup2(error, 2) >= 0;
}

// Handlers are code of the parent: they must not run in a child that shares its memory.
void reset_handlers() {
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action;
    if (sigaction(number, nullptr, &action) != 0 || action.sa_handler == SIG_IGN || action.sa_handler == SIG_DFL)
      continue;
    action = {};
    action.sa_handler = SIG_DFL;
    sigaction(number, &action, nullptr);
  }
}

// vfork, not fork: no copy of the page tables, no atfork handlers of other libraries, and errno comes back by itself.
[[gnu::noinline]] pid_t vfork_and_exec(const ExecPlan& plan, volatile int& error) {
  pid_t parent = getpid();
  pid_t pid = vfork();
  if (pid != 0) return pid;
  if (!settle_in(parent, plan.input, plan.error)) _exit(127);
  for (std::size_t i = 0; i < plan.kept_count; ++i) fcntl(plan.kept[i], F_SETFD, 0);
  reset_handlers();
  sigprocmask(SIG_SETMASK, plan.mask, nullptr);
  execve(plan.path, plan.arguments, plan.variables);
  error = errno;
  _exit(127);
}

// A child that cannot be watched is not left behind.
Descriptor open_process(pid_t pid) {
  try {
    return require_pidfd(pid);
  } catch (const LaunchError&) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    throw;
  }
}

[[noreturn]] void fail_to_start(const char* how, const std::string& what, int error) {
  std::string hint = error == EAGAIN ? ". The limit of processes is reached; see ulimit -u" : "";
  throw LaunchError("cannot start a rank: " + std::string(how) + " of " + what + " failed: " + std::strerror(error) +
                    hint);
}

}  // namespace

sigset_t current_mask() {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  return mask;
}

Child start_program(const Command& command, const ChildOptions& options) {
  Child child;
  auto error_pipe = make_pipe();
  auto input = open_dev_null();
  std::vector<std::string> settings;
  for (const auto& [name, value] : command.variables) settings.push_back(name + "=" + value);
  auto arguments = exec_pointers(command.arguments), variables = exec_pointers(settings);
  ExecPlan plan{command.path.c_str(),   arguments.data(),    variables.data(),    input.get(),
                error_pipe.write.get(), options.kept.data(), options.kept.size(), &options.mask};
  volatile int error = 0;
  {
    BlockSignals blocked;
    child.pid = vfork_and_exec(plan, error);
  }
  if (child.pid < 0) fail_to_start("vfork", command.path, errno);
  if (error != 0) {
    waitpid(child.pid, nullptr, 0);
    fail_to_start("exec", command.path, error);
  }
  child.process = open_process(child.pid);
  child.error = std::move(error_pipe.read);
  return child;
}

Child start_function(const std::function<int(int result)>& body) {
  Child child;
  auto error_pipe = make_pipe(), result_pipe = make_pipe();
  auto input = open_dev_null();
  pid_t parent = getpid();
  std::fflush(nullptr);
  BlockSignals blocked;
  child.pid = fork();
  if (child.pid < 0) fail_to_start("fork", "this process", errno);
  if (child.pid == 0) {
    if (!settle_in(parent, input.get(), error_pipe.write.get())) _exit(127);
    blocked.restore();
    int code = body(result_pipe.write.get());
    std::fflush(nullptr);
    _exit(code);
  }
  child.process = open_process(child.pid);
  child.error = std::move(error_pipe.read);
  child.result = std::move(result_pipe.read);
  return child;
}

std::optional<Child> copy_process() {
  Child child;
  auto error_pipe = make_pipe();
  auto input = open_dev_null();
  pid_t parent = getpid();
  // Or both would write what is buffered.
  std::fflush(nullptr);
  std::cout.flush();
  std::clog.flush();
  BlockSignals blocked;
  child.pid = fork();
  if (child.pid < 0) fail_to_start("fork", "this process", errno);
  if (child.pid == 0) {
    if (!settle_in(parent, input.get(), error_pipe.write.get())) _exit(127);
    return std::nullopt;
  }
  child.process = open_process(child.pid);
  child.error = std::move(error_pipe.read);
  return child;
}

}  // namespace fabric
