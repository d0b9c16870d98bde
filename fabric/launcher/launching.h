#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/base/env_reader.h>
#include <fabric/base/rank_info.h>
#include <fabric/config.h>

namespace fabric {

/// Starts the other ranks of this node from within one process, watches them and ends them. No LibTorch here.
///
/// Kinds:
/// - "popen" re-executes this program's own command line for the local ranks 1 … n-1; the calling process is local rank
/// 0.
/// - "copy" is the same by forking this process, which must not have started threads: every rank goes on from launch(),
///   so that code before it runs once and LibTorch is loaded once.
/// - "auto" is "copy" where this process has one thread and has not used CUDA, "popen" elsewhere.
/// - "spawn" re-executes the command line for all ranks, which run the function given to `launch_function` and end.
/// - "fork" forks the calling process for all ranks, which must not have started threads.
///
/// A child that fails ends the job within a second: its last lines of stderr are printed and, for popen and copy, this
/// process ends with the child's code (128 + n for signal n); spawn and fork throw LaunchError. No child outlives the
/// process that started it. fabric/docs/launching.md has the details.
class FABRIC_API Launcher {
 public:
  struct Config {
    int num_processes = 1;
    int num_nodes = 1;
    int node_rank = 0;
    std::string main_address = "127.0.0.1";
    /// 0: MASTER_PORT, or a free port, which is allowed on one node only.
    int main_port = 0;
    /// Seconds that rank 0 waits for its children at the end. Children that are stopped, then or because the job
    /// failed, get SIGTERM, and SIGKILL half a second later.
    double grace_seconds = 30;
    FABRIC_FIELDS(Config, num_processes, num_nodes, node_rank, main_address, main_port, grace_seconds)
  };
  /// Runs in each rank; the bytes that rank 0 returns come back from `launch_function`.
  using Function = std::function<std::string(const RankInfo&)>;

  virtual ~Launcher() = default;
  virtual std::string kind() const = 0;
  /// True for spawn and fork, which need a function to run.
  virtual bool needs_function() const = 0;
  /// popen and copy only: starts the others and tells this process its own place by environment variables (LOCAL_RANK
  /// and so on). Does nothing in a process that is a rank already (LOCAL_RANK is set): in the children, under torchrun,
  /// and when called again, for the same children are still there. Whoever connects the ranks once more must use other
  /// keys in the store at MASTER_ADDR:MASTER_PORT. Throws MisuseError when called again for another number of
  /// processes, and when copy finds more than one thread; LaunchError when a child cannot be started or the given port
  /// is taken; ConfigError for settings that cannot be.
  virtual void launch() = 0;
  /// spawn and fork only: runs `function` in all ranks and waits for them. In a process that is a rank already it is
  /// simply called. Throws LaunchError naming rank, exit code and last lines of stderr when a rank fails, MisuseError
  /// when fork finds more than one thread.
  virtual std::string launch_function(const Function& function) = 0;
  /// popen and copy: waits for the children to end, at most the grace time, then stops them; returns the first failing
  /// exit code or 0. Also done when the program ends, so that only who wants to know must call it. spawn and fork have
  /// nobody to wait for.
  virtual int join() = 0;
};

/// `kind` is one of the above; throws ConfigError for another. "auto" is decided by this call.
FABRIC_API std::unique_ptr<Launcher> make_launcher(const std::string& kind, const Launcher::Config& config,
                                                   std::shared_ptr<EnvReader> env = process_env());
/// A TCP port that is free now on this machine. Another process may take it before it is used.
FABRIC_API int find_free_port();

}  // namespace fabric
