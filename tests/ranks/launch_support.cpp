#include "tests/ranks/launch_support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace launch_support {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kMark = "FABRIC_TEST_MARK";
constexpr std::chrono::seconds kLimit{25};

std::vector<int> marked(const std::string& mark) {
  std::vector<int> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    int pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0 || pid == getpid()) continue;
    std::ifstream file(entry.path() / "environ", std::ios::binary);
    std::string variables((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (variables.find(std::string(kMark) + "=" + mark) != std::string::npos) found.push_back(pid);
  }
  return found;
}

std::vector<int> wait_for_none(const std::string& mark) {
  auto deadline = Clock::now() + std::chrono::seconds(5);
  auto left = marked(mark);
  for (; !left.empty() && Clock::now() < deadline; left = marked(mark))
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  for (int pid : left) kill(pid, SIGKILL);
  return left;
}

[[noreturn]] void exec_child(const std::string& program, const std::vector<std::string>& arguments,
                             const std::map<std::string, std::string>& variables, int output) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(output, 1);
  dup2(output, 2);
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK",
                           "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "FABRIC_LAUNCHED"})
    unsetenv(name);
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> words{const_cast<char*>(program.c_str())};
  for (const auto& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  _exit(127);
}

}  // namespace

std::string program() { return FABRIC_LAUNCH_PROGRAM; }

std::vector<std::string> Run::lines(const std::string& text) const {
  std::vector<std::string> all;
  std::istringstream stream(output);
  for (std::string line; std::getline(stream, line);)
    if (line.find(text) != std::string::npos) all.push_back(line);
  return all;
}

Run run(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& variables,
        const std::string& program) {
  static int count = 0;
  auto mark = std::to_string(getpid()) + "-" + std::to_string(++count) + ".";
  auto with_mark = variables;
  with_mark[kMark] = mark;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  auto start = Clock::now();
  pid_t pid = fork();
  if (pid == 0) exec_child(program.empty() ? launch_support::program() : program, arguments, with_mark, ends[1]);
  close(ends[1]);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  Run result;
  int status = 0;
  char buffer[65536];
  auto drain = [&] {
    for (ssize_t size; (size = read(ends[0], buffer, sizeof buffer)) > 0;) result.output.append(buffer, size);
  };
  while (waitpid(pid, &status, WNOHANG) == 0) {
    pollfd entry{ends[0], POLLIN, 0};
    poll(&entry, 1, 5);
    drain();
    if (Clock::now() - start < kLimit) continue;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    status = 124 << 8;
    break;
  }
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  result.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  result.left = wait_for_none(mark);
  drain();
  close(ends[0]);
  return result;
}

}  // namespace launch_support
