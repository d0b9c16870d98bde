#include "launcher/run/stack_dump.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "launcher/descriptor.h"

namespace fabric::run {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kLongestDump = 64 * 1024;

/// Runs a tool and returns its stdout; empty when it is missing, fails or takes too long.
std::string output_of(const std::vector<std::string>& words, std::chrono::milliseconds limit) {
  auto pipe = make_pipe();
  auto null = open_dev_null();
  pid_t pid = fork();
  if (pid < 0) return "";
  if (pid == 0) {
    dup2(null.get(), 0);
    dup2(pipe.write.get(), 1);
    dup2(null.get(), 2);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    std::vector<char*> arguments;
    for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  pipe.write.reset();
  std::string text;
  char buffer[4096];
  bool ended = false;
  for (auto deadline = Clock::now() + limit; !ended && Clock::now() < deadline;) {
    pollfd entry{pipe.read.get(), POLLIN, 0};
    if (poll(&entry, 1, 20) <= 0) continue;
    ssize_t size = read(pipe.read.get(), buffer, sizeof buffer);
    ended = size == 0;
    if (size > 0 && text.size() < kLongestDump) text.append(buffer, static_cast<std::size_t>(size));
  }
  // A debugger that is killed lets go of what it looked at.
  kill(pid, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  return ended ? text : "";
}

std::string only_frames(const std::string& text) {
  std::istringstream lines(text);
  std::string kept;
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("#") || line.starts_with("Thread ") || line.starts_with("TID ")) kept += line + "\n";
  return kept;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string by_kernel(pid_t pid) {
  auto folder = "/proc/" + std::to_string(pid) + "/task";
  DIR* tasks = opendir(folder.c_str());
  if (!tasks) return "";
  std::string text;
  while (const dirent* entry = readdir(tasks)) {
    if (entry->d_name[0] == '.' || text.size() > kLongestDump) continue;
    auto task = folder + "/" + entry->d_name;
    auto status = first_line(task + "/stat");
    auto name_end = status.rfind(')');
    text += "Thread " + std::string(entry->d_name) + " (" + first_line(task + "/comm") + "): state " +
            (name_end != std::string::npos && name_end + 2 < status.size() ? status.substr(name_end + 2, 1) : "?") +
            ", waits in " + first_line(task + "/wchan") + ", system call " + first_line(task + "/syscall") + "\n";
    std::ifstream stack(task + "/stack");
    for (std::string line; std::getline(stack, line);) text += "  " + line + "\n";
  }
  closedir(tasks);
  return text;
}

}  // namespace

std::string dump_stacks(pid_t pid, std::chrono::milliseconds limit) {
  try {
    auto number = std::to_string(pid);
    auto text = only_frames(output_of({"eu-stack", "-p", number}, limit));
    if (text.empty())
      text = only_frames(output_of(
          {"gdb", "-p", number, "-nx", "-batch", "-ex", "set width 0", "-ex", "thread apply all backtrace 40"}, limit));
    return text.empty() ? by_kernel(pid) : text;
  } catch (const std::exception&) {
    return by_kernel(pid);
  }
}

}  // namespace fabric::run
