#pragma once
// Runs of a few ranks that are killed. They are forked out of a process that has LibTorch loaded and has run nothing
// yet, since loading it takes longer than a run.

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/free_port.h"
#include "tests/support/ranks.h"

/// The processes of one life.
class Life {
 public:
  Life(int ranks, const std::function<void()>& run) {
    std::string port = ranks > 1 ? std::to_string(free_port()) : "";
    for (int rank = 0; rank < ranks; ++rank) {
      pid_t pid = fork();
      RANK_CHECK(pid >= 0);
      if (pid > 0) {
        pids_.push_back(pid);
        continue;
      }
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      alarm(60);  // nobody waits forever
      set_place(rank, ranks, port);
      try {
        run();
      } catch (const std::exception& error) {
        std::cerr << "rank " << rank << ": " << error.what() << std::endl;
        _exit(1);
      }
      _exit(0);
    }
  }
  /// Kills all at once, as a failing machine does. True when they were still at work.
  bool kill_after(std::chrono::microseconds time) {
    std::this_thread::sleep_for(time);
    for (pid_t pid : pids_) kill(pid, SIGKILL);
    bool killed = false;
    for (int status : wait()) killed |= WIFSIGNALED(status);
    return killed;
  }
  /// Kills one; the others have to end by themselves. True when it was still at work.
  bool kill_one_after(std::chrono::microseconds time, std::size_t rank) {
    std::this_thread::sleep_for(time);
    kill(pids_[rank], SIGKILL);
    auto statuses = wait();
    for (std::size_t i = 0; i < statuses.size(); ++i) {
      if (i == rank || WIFEXITED(statuses[i])) continue;
      std::cerr << "rank " << i << " ended by signal " << WTERMSIG(statuses[i]) << ", not by itself" << std::endl;
      RANK_CHECK(WIFEXITED(statuses[i]));
    }
    return WIFSIGNALED(statuses[rank]);
  }
  void finish() {
    for (int status : wait()) RANK_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }

 private:
  static void set_place(int rank, int ranks, const std::string& port) {
    for (const char* name : {"RANK", "LOCAL_RANK"}) setenv(name, std::to_string(rank).c_str(), 1);
    for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) setenv(name, std::to_string(ranks).c_str(), 1);
    if (!port.empty()) setenv("MASTER_PORT", port.c_str(), 1);
  }
  std::vector<int> wait() {
    std::vector<int> statuses;
    for (pid_t pid : pids_) {
      int status = 0;
      RANK_CHECK(waitpid(pid, &status, 0) == pid);
      statuses.push_back(status);
    }
    pids_.clear();
    return statuses;
  }
  std::vector<pid_t> pids_;
};
