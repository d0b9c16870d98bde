#include "launcher/run/watch/stack_dump.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fabric/base/error.h>

#include "fabric/base/files_internal.h"
#include "launcher/os/die_with.h"
#include "launcher/os/signal_mask.h"
#include "launcher/start/command.h"

namespace fabric::run {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kLongestDump = 64 * 1024;
/// For one debugger and one process, and after which no further process is looked at.
constexpr std::chrono::seconds kToolLimit{8}, kBeginLimit{4};

/// Runs a tool and returns its stdout; empty when it is missing, fails or takes too long.
std::string output_of(const std::vector<std::string>& words, std::chrono::milliseconds limit) {
  auto pipe = make_pipe();
  auto null = open_dev_null();
  auto arguments = exec_pointers(words);
  pid_t self = getpid(), pid = fork();
  if (pid < 0) return "";
  if (pid == 0) {
    if (!die_with(self)) _exit(1);
    dup2(null.get(), 0);
    dup2(pipe.write.get(), 1);
    dup2(null.get(), 2);
    unblock_all();
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

std::string stacks_of(pid_t pid) {
  try {
    auto number = std::to_string(pid);
    auto text = only_frames(output_of({"eu-stack", "-p", number}, kToolLimit));
    if (text.empty())
      text = only_frames(output_of(
          {"gdb", "-p", number, "-nx", "-batch", "-ex", "set width 0", "-ex", "thread apply all backtrace 40"},
          kToolLimit));
    return text.empty() ? by_kernel(pid) : text;
  } catch (const std::exception&) {
    return by_kernel(pid);
  }
}

/// The process that asks the debuggers; stdin, stdout and stderr stay, of the others it keeps `pipe` alone.
[[noreturn]] void serve(const std::vector<pid_t>& pids, int pipe, pid_t launcher) {
  if (!die_with(launcher)) _exit(1);
  close_range(3, static_cast<unsigned>(pipe) - 1, 0);
  close_range(static_cast<unsigned>(pipe) + 1, ~0U, 0);
  auto last_begin = Clock::now() + kBeginLimit;
  for (pid_t pid : pids) {
    if (Clock::now() >= last_begin) break;
    auto text = stacks_of(pid);
    std::erase(text, '\0');
    if (!write_all(pipe, {text.c_str(), text.size() + 1})) break;
  }
  _exit(0);
}

}  // namespace

StackDump::StackDump(const std::vector<pid_t>& pids) {
  auto pipe = make_pipe();
  pid_t launcher = getpid();
  pid_ = fork();
  if (pid_ < 0) throw LaunchError(std::string("cannot start a process to take stacks: ") + std::strerror(errno));
  if (pid_ == 0) serve(pids, pipe.write.get(), launcher);
  pipe_ = std::move(pipe.read);
  deadline_ = Clock::now() + kBeginLimit + 2 * kToolLimit + std::chrono::seconds(1);
}

StackDump::~StackDump() {
  kill(pid_, SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

bool StackDump::advance() {
  char buffer[16 * 1024];
  ssize_t size = 0;
  while ((size = read(pipe_.get(), buffer, sizeof buffer)) > 0) text_.append(buffer, static_cast<std::size_t>(size));
  return size == 0;
}

std::vector<std::string> StackDump::take() {
  std::vector<std::string> stacks;
  for (std::size_t begin = 0, end = 0; (end = text_.find('\0', begin)) != std::string::npos; begin = end + 1)
    stacks.push_back(text_.substr(begin, end - begin));
  return stacks;
}

}  // namespace fabric::run
