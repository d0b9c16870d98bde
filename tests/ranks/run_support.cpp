#include "tests/ranks/run_support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "tests/support/catch.h"

namespace run_support {
namespace {

constexpr const char* kMark = "FABRIC_TEST_MARK";
constexpr double kLimit = kSanitized ? 100 : 25, kPatience = 15;

// A process whose first thread has ended shows its variables with its other threads only.
std::string variables_of(const std::filesystem::path& process) {
  auto text = read_file(process / "environ");
  std::error_code ignored;
  if (text.empty())
    for (const auto& task : std::filesystem::directory_iterator(process / "task", ignored))
      text += read_file(task.path() / "environ");
  return text;
}

std::vector<int> marked(const std::string& mark, int except) {
  std::vector<int> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    int pid = std::atoi(entry.path().filename().c_str());
    if (pid > 0 && pid != getpid() && pid != except &&
        variables_of(entry.path()).find(std::string(kMark) + "=" + mark) != std::string::npos)
      found.push_back(pid);
  }
  return found;
}

void read_into(int fd, std::string& text) {
  char buffer[65536];
  for (ssize_t size; (size = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<std::size_t>(size));
}

}  // namespace

std::string program() { return FABRIC_PROGRAM; }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  // Reading about a process that ends meanwhile fails; here that is no exception.
  text << file.rdbuf();
  return text.str();
}

void write_script(const std::string& path, const std::string& text) {
  std::ofstream(path) << "#!/bin/sh\n" << text << "\n";
  REQUIRE(chmod(path.c_str(), 0755) == 0);
}

void require_clean(const Result& result) {
  INFO(result.out << result.error);
  CHECK(result.left.empty());
  CHECK(result.code != 124);
}

std::vector<std::string> Result::lines(const std::string& text) const {
  std::vector<std::string> all;
  std::istringstream stream(out);
  for (std::string line; std::getline(stream, line);) {
    auto end = line.starts_with("[") ? line.find("] ") : std::string::npos;
    if (line.find(text) != std::string::npos) all.push_back(end == std::string::npos ? line : line.substr(end + 2));
  }
  std::sort(all.begin(), all.end());
  return all;
}

Job::Job(const std::vector<std::string>& words, const Variables& variables, const std::function<void()>& before) {
  static int count = 0;
  static const Folder temporary;
  mark_ = std::to_string(getpid()) + "-" + std::to_string(++count) + ".";
  int out[2], error[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(error, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  start_ = now();
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(out[1], 1);
    dup2(error[1], 2);
    for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS"}) unsetenv(name);
    setenv(kMark, mark_.c_str(), 1);
    setenv("TMPDIR", temporary.path().c_str(), 1);
    setenv("XDG_CONFIG_HOME", temporary.path().c_str(), 1);
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    auto path = program();
    std::vector<char*> arguments{path.data()};
    for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    if (before) before();
    execv(path.c_str(), arguments.data());
    _exit(127);
  }
  close(out[1]);
  close(error[1]);
  for (int fd : {out[0], error[0]}) fcntl(fd, F_SETFL, O_NONBLOCK);
  out_ = out[0];
  error_ = error[0];
}

Job::~Job() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    for (int pid : processes()) kill(pid, SIGKILL);
  }
  close(out_);
  close(error_);
}

void Job::drain() {
  pollfd entries[] = {{out_, POLLIN, 0}, {error_, POLLIN, 0}};
  poll(entries, 2, 2);
  read_into(out_, result_.out);
  read_into(error_, result_.error);
}

bool Job::wait_for(const std::string& text, int times) {
  for (double limit = now() + kPatience; now() < limit; usleep(1000)) {
    drain();
    int found = 0;
    for (const auto* stream : {&result_.out, &result_.error})
      for (auto at = stream->find(text); at != std::string::npos; at = stream->find(text, at + 1)) ++found;
    if (found >= times) return true;
  }
  return false;
}

void Job::signal(int number) const { kill(pid_, number); }

std::vector<int> Job::processes() const { return marked(mark_, pid_); }

pid_t Job::guardian() const {
  for (int pid : processes())
    if (read_file("/proc/" + std::to_string(pid) + "/comm") == "fabric-guardian\n") return pid;
  return -1;
}

Result Job::finish() {
  int status = 0;
  rusage usage{};
  while (wait4(pid_, &status, WNOHANG, &usage) == 0) {
    drain();
    if (now() - start_ < kLimit) continue;
    kill(pid_, SIGKILL);
    waitpid(pid_, &status, 0);
    status = 124 << 8;
    break;
  }
  pid_ = -1;
  result_.seconds = now() - start_;
  result_.peak_kilobytes = usage.ru_maxrss;
  result_.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  result_.left = processes();
  for (double limit = now() + 5; !result_.left.empty() && now() < limit; usleep(5000)) result_.left = processes();
  for (int pid : result_.left) kill(pid, SIGKILL);
  drain();
  return result_;
}

Result run(const std::vector<std::string>& words, const Variables& variables, const std::function<void()>& before) {
  return Job(words, variables, before).finish();
}

std::vector<std::string> shell(int workers, const std::string& script, const std::vector<std::string>& flags) {
  std::vector<std::string> words{"run", "-n", std::to_string(workers)};
  words.insert(words.end(), flags.begin(), flags.end());
  words.insert(words.end(), {"sh", "-c", script});
  return words;
}

Folder::Folder() {
  char name[] = "/tmp/fabric_run_test_XXXXXX";
  if (!mkdtemp(name)) throw std::runtime_error("mkdtemp failed");
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace run_support
