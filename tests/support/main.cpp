// The main of every test program: runs a rank's body when the parent asked for one, Catch2 otherwise.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_RUNNER
#endif
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <thread>

#include "tests/support/free_port.h"
#include "tests/support/ranks.h"

namespace ranks {
namespace {

std::map<std::string, Body>& bodies() {
  static std::map<std::string, Body> all;
  return all;
}

struct Child {
  pid_t pid = -1;
  int output = -1;
  Outcome outcome;
  bool running = true;
};

Child start(const std::vector<std::string>& command, const std::map<std::string, std::string>& env) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  Child child;
  child.pid = fork();
  if (child.pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    dup2(ends[1], 1);
    dup2(ends[1], 2);
    for (const auto& [name, value] : env) setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> arguments;
    for (const auto& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    std::cerr << "cannot start " << command[0] << ": " << strerror(errno) << std::endl;
    _exit(127);
  }
  close(ends[1]);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  child.output = ends[0];
  return child;
}

void drain(Child& child) {
  char buffer[4096];
  for (ssize_t n; (n = read(child.output, buffer, sizeof buffer)) > 0;) child.outcome.output.append(buffer, n);
}

void wait_all(std::vector<Child>& children, double timeout_seconds) {
  auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_seconds);
  for (bool any = true; any;) {
    any = false;
    bool late = std::chrono::steady_clock::now() > deadline;
    for (auto& child : children) {
      drain(child);
      if (!child.running) continue;
      if (late) kill(-child.pid, SIGKILL);
      int status = 0;
      if (waitpid(child.pid, &status, late ? 0 : WNOHANG) == child.pid) {
        child.running = false;
        child.outcome.exit_code = late ? 124 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        drain(child);
        close(child.output);
        child.output = -1;
      } else {
        any = true;
      }
    }
    if (any) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace

bool add_body(const std::string& name, Body body) { return bodies().emplace(name, std::move(body)).second; }

std::string self() {
  char path[4096];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  return std::string(path, n > 0 ? n : 0);
}

std::vector<Outcome> run_program(const std::vector<std::string>& command, const Options& options) {
  std::vector<Child> children;
  auto env = options.env;
  env.try_emplace("MASTER_ADDR", "127.0.0.1");
  env.try_emplace("MASTER_PORT", std::to_string(free_port()));
  if (!options.prefix.empty()) {
    auto line = options.prefix;
    line.insert(line.end(), command.begin(), command.end());
    children.push_back(start(line, options.env));
  } else {
    for (int rank = 0; rank < options.world_size; ++rank) {
      auto mine = env;
      mine["RANK"] = mine["LOCAL_RANK"] = std::to_string(rank);
      mine["WORLD_SIZE"] = mine["LOCAL_WORLD_SIZE"] = std::to_string(options.world_size);
      mine.try_emplace("NODE_RANK", "0");
      mine.try_emplace("GROUP_RANK", "0");
      mine.try_emplace("OMP_NUM_THREADS", "1");
      children.push_back(start(command, mine));
    }
  }
  wait_all(children, options.timeout_seconds);
  std::vector<Outcome> outcomes;
  for (auto& child : children) outcomes.push_back(std::move(child.outcome));
  return outcomes;
}

std::vector<Outcome> run(const std::string& body, const Options& options) {
  auto with_body = options;
  with_body.env["FABRIC_TEST_BODY"] = body;
  return run_program({self()}, with_body);
}

void run_and_require(const std::string& body, const Options& options) {
  auto outcomes = run(body, options);
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    INFO("rank " << rank << " of '" << body << "':\n" << outcomes[rank].output);
    CHECK(outcomes[rank].exit_code == 0);
  }
}

void fail(const char* file, int line, const std::string& what) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

}  // namespace ranks

int main(int argc, char** argv) {
  if (const char* name = getenv("FABRIC_TEST_BODY")) {
    auto body = ranks::bodies().find(name);
    if (body == ranks::bodies().end()) {
      std::cerr << "no body named " << name << std::endl;
      return 99;
    }
    const char* rank = getenv("RANK") ? getenv("RANK") : getenv("OMPI_COMM_WORLD_RANK");
    const char* size = getenv("WORLD_SIZE") ? getenv("WORLD_SIZE") : getenv("OMPI_COMM_WORLD_SIZE");
    try {
      body->second(rank ? atoi(rank) : 0, size ? atoi(size) : 1);
      return 0;
    } catch (const std::exception& error) {
      std::cerr << "rank " << (rank ? rank : "?") << " failed: " << error.what() << std::endl;
      return 1;
    }
  }
  return Catch::Session().run(argc, argv);
}
