#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/ranks/run_support.h"

// A real SLURM on this machine: a controller and four nodes (n1, n2, gpu-08, gpu-09), each with two processors.
namespace slurm_support {

struct Output {
  int code = 0;
  std::string text;  // stdout and stderr together
  bool has(const std::string& part) const { return text.find(part) != std::string::npos; }
  int count(const std::string& part) const;
};

/// Set up by the constructor, stopped by the destructor, all in a folder of its own. One at a time.
class Cluster {
 public:
  /// Seconds between SIGTERM and SIGKILL when a job is cancelled.
  static constexpr int kKillWait = 20;
  Cluster();
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  /// Empty when it works; else why it cannot be had here: not root, not installed.
  const std::string& problem() const { return problem_; }
  /// Runs a line of shell, at most 60 s.
  Output shell(const std::string& line) const;
  /// Submits a script for so many nodes, one task on each; returns the job's id. What it writes is in `output()`.
  std::string submit(const std::string& script, int nodes, const std::string& flags = "");
  std::string output() const;
  /// Waits until the job's output has the text so many times. False after 60 s.
  bool wait_for(const std::string& text, int times = 1) const;
  /// "RUNNING", "PENDING", …; empty when it is gone.
  std::string state_of(const std::string& job) const;
  /// A job that was put back into the queue waits there for two minutes. This waits until it is there, and cuts that
  /// short.
  bool let_start(const std::string& job) const;
  bool wait_until_gone(const std::string& job) const;
  std::string operator/(const std::string& name) const { return folder_ / name; }

 private:
  void write_settings() const;
  void start();

  run_support::Folder folder_;
  std::string problem_;
};

}  // namespace slurm_support
