#include "tests/support/rank_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <thread>

namespace ranks {
namespace {

void drain(Process& process) {
  char buffer[4096];
  for (ssize_t n; (n = read(process.output, buffer, sizeof buffer)) > 0;) process.outcome.output.append(buffer, n);
}

/// Whether it has ended, and then what came of it.
bool look_at(Process& process, bool late) {
  drain(process);
  if (late) kill(-process.pid, SIGKILL);
  int status = 0;
  if (waitpid(process.pid, &status, late ? 0 : WNOHANG) != process.pid) return false;
  process.running = false;
  process.outcome.exit_code = late ? 124 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  drain(process);
  close(process.output);
  process.output = -1;
  return true;
}

}  // namespace

Process fork_process() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  Process process;
  const pid_t parent = getpid();
  process.pid = fork();
  if (process.pid < 0) throw std::runtime_error("fork failed");
  if (process.pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(125);
    setpgid(0, 0);
    dup2(ends[1], 1);
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    return process;
  }
  close(ends[1]);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  process.output = ends[0];
  return process;
}

Process start(const std::vector<std::string>& command, const Variables& variables) {
  Process process = fork_process();
  if (process.pid > 0) return process;
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> arguments;
  for (const auto& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  std::cerr << "cannot start " << command[0] << ": " << strerror(errno) << std::endl;
  _exit(127);
}

std::vector<Outcome> wait_all(std::vector<Process> processes, double timeout_seconds) {
  auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_seconds);
  for (bool any = true; any;) {
    any = false;
    bool late = std::chrono::steady_clock::now() > deadline;
    for (auto& process : processes)
      if (process.running && !look_at(process, late)) any = true;
    if (any) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  std::vector<Outcome> outcomes;
  for (auto& process : processes) outcomes.push_back(std::move(process.outcome));
  return outcomes;
}

}  // namespace ranks
