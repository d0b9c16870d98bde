#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/config.h>
#include <fabric/plugins/environments/env_reader.h>
#include <fabric/rank_info.h>

namespace fabric {

/// Starts the other ranks of this node from within one process, watches them and ends them. No LibTorch here.
///
/// Kinds: "popen" re-executes this program's own command line for the local ranks 1 … n-1, and the calling process is
/// local rank 0; "spawn" re-executes it for all ranks, which run the function given to `launch` and end; "fork" forks the
/// calling process for all ranks, which must not have started threads.
/// A child that dies ends the job within a second: its last lines of stderr are printed and the whole job exits with its
/// code (128 + n for a signal). No child outlives the process that started it.
class FABRIC_API Launcher {
 public:
  struct Config {
    int num_processes = 1;
    int num_nodes = 1;
    int node_rank = 0;
    std::string main_address = "127.0.0.1";
    /// 0: a free port is taken.
    int main_port = 0;
    /// Seconds between SIGTERM and SIGKILL when children are stopped, and that rank 0 waits for them at the end.
    double grace_seconds = 30;
    FABRIC_FIELDS(Config, num_processes, num_nodes, node_rank, main_address, main_port, grace_seconds)
  };
  /// Runs in each rank; the bytes that rank 0 returns come back from `launch_function`.
  using Function = std::function<std::string(const RankInfo&)>;

  virtual ~Launcher() = default;
  virtual std::string kind() const = 0;
  /// True for spawn and fork, which need a function to run.
  virtual bool needs_function() const = 0;
  /// popen only: starts the others and tells this process its own place (by environment variables as well).
  virtual void launch() = 0;
  /// spawn and fork only.
  virtual std::string launch_function(const Function& function) = 0;
  /// Waits for the children to end, at most the grace time, then stops them. Returns the first failing exit code or 0.
  virtual int join() = 0;
};

/// `kind` is "popen", "spawn" or "fork"; throws ConfigError for another.
FABRIC_API std::unique_ptr<Launcher> make_launcher(const std::string& kind, const Launcher::Config& config,
                                                   std::shared_ptr<EnvReader> env = process_env());
/// A TCP port that is free now on this machine.
FABRIC_API int find_free_port();

}  // namespace fabric
