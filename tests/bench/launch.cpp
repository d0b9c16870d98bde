// Time from start to the first barrier of two ranks, and memory per rank: Fabric::launch against two bare processes.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "tests/bench/bench.h"

namespace {

struct Start {
  double milliseconds = 0;
  double megabytes = 0;  // of the largest process
};

pid_t spawn(const std::string& program, int output) {
  pid_t pid = fork();
  if (pid == 0) {
    dup2(output, 1);
    execl(program.c_str(), program.c_str(), nullptr);
    _exit(127);
  }
  return pid;
}

Start measure(const std::string& program, int processes, int port) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
  if (processes > 1) setenv("MASTER_PORT", std::to_string(port).c_str(), 1);
  auto begin = bench::Clock::now();
  std::vector<pid_t> pids;
  for (int rank = 0; rank < processes; ++rank) {
    if (processes > 1) setenv("RANK", std::to_string(rank).c_str(), 1);
    pids.push_back(spawn(program, ends[1]));
  }
  unsetenv("RANK");
  unsetenv("MASTER_PORT");
  close(ends[1]);
  char byte;
  bool ready = read(ends[0], &byte, 1) == 1;
  Start result;
  result.milliseconds = std::chrono::duration<double, std::milli>(bench::Clock::now() - begin).count();
  for (pid_t pid : pids) {
    int status = 0;
    rusage usage{};
    wait4(pid, &status, 0, &usage);
    if (!ready || status != 0) throw std::runtime_error(program + " failed");
    result.megabytes = std::max(result.megabytes, static_cast<double>(usage.ru_maxrss) / 1024);
  }
  close(ends[0]);
  return result;
}

}  // namespace

int main() {
  auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  bench::header();
  bench::Pair popen_time, usual_time, memory;
  auto keep = [](double& slot, double value) { slot = std::min(slot, value); };
  for (int round = 0; round < 9; ++round) {
    auto theirs = measure(folder / "bench_launch_bare", 2, 20000 + round * 7 + static_cast<int>(getpid() % 10000));
    setenv("START_METHOD", "auto", 1);
    auto usual = measure(folder / "bench_launch_ours", 1, 0);
    setenv("START_METHOD", "popen", 1);
    auto executed = measure(folder / "bench_launch_ours", 1, 0);
    if (round == 0) continue;
    keep(usual_time.ours, usual.milliseconds);
    keep(popen_time.ours, executed.milliseconds);
    for (auto* pair : {&usual_time, &popen_time}) keep(pair->theirs, theirs.milliseconds);
    keep(memory.ours, usual.megabytes);
    keep(memory.theirs, theirs.megabytes);
  }
  bench::row("launch() of 2 ranks to first barrier / bare Gloo", usual_time.ours, usual_time.theirs, "ms", 1.2);
  bench::row("memory per rank / bare Gloo", memory.ours, memory.theirs, "MB", 1.15);
  std::printf("(start_method popen, where the process cannot be copied: %.0f ms, ratio %.2f)\n", popen_time.ours,
              popen_time.ratio());
}
