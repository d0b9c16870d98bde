#pragma once

#include <sys/resource.h>

#include <optional>
#include <string>
#include <vector>

#include "launcher/run/attempt.h"

namespace fabric::run {

/// What all attempts on this node share: the program, the folders, the console, signals, and what came of the attempts.
class Runner {
 public:
  /// Finds the program and makes the folders. Throws ProgramError, ConfigError, LaunchError.
  /// `ignored`: signals that were ignored when the launcher was started, and stay so for the workers.
  Runner(const Options& options, const Job& job, const EnvReader& env, std::vector<int> ignored,
         Lifeline* lifeline = nullptr);

  /// Runs all workers of this node once. With `node`, stops them when the other nodes are to stop.
  const AttemptResult& run(const Job& job, int number, rendezvous::Node* node = nullptr);
  const std::vector<AttemptResult>& attempts() const { return attempts_; }
  Console& console() { return console_; }
  /// Delivers the signals of --stop-on and --forward.
  int signals() const { return signals_.get(); }
  const Options& options() const { return options_; }
  /// Of a job that was started from elsewhere; else null.
  Lifeline* lifeline() const { return lifeline_; }

  /// Says why the last attempt failed; the job goes on.
  void say_failure();
  /// Says it for the last time, and why the workers are not started again.
  int fail(int code, const std::string& reason = "");
  /// Writes the report file and all that the console still holds; returns the code. A signal of --stop-on ends the wait
  /// for a slow reader; `in_haste`: one has come already.
  int finish(int code, bool in_haste = false);

 private:
  void take_signals();
  void say_attempts();
  std::string kept_logs() const;
  bool is_told_to_end();
  AttemptContext context(rendezvous::Node* node);

  Options options_;
  Lifeline* lifeline_;
  std::vector<int> ignored_;
  Program program_;
  Job job_;
  rlimit files_;
  LogFolders folders_;
  Variables outer_, variables_;
  std::string own_error_file_, prefix_template_;
  Console console_;
  Cgroup cgroup_;
  Descriptor signals_, children_;
  sigset_t mask_;
  std::vector<AttemptResult> attempts_;
  int processors_;
  int heartbeat_number_;
  bool was_told_to_end_ = false;
};

}  // namespace fabric::run
