#pragma once

#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <vector>

#include "launcher/start/plan.h"
#include "launcher/start/supervisor.h"

namespace fabric {

/// The children of this process as local ranks 1 … n-1, and the thread that starts and watches them. The thread lives
/// as long as they do, since the system kills them when it ends. Copies of this process are started by the calling
/// thread instead, and only watched by the other. There is one job per process, never destroyed.
class PopenJob {
 public:
  enum class Start { re_execute, copy };
  /// Starts the children. Throws LaunchError when one cannot be started; then none is left. Returns in copies, too.
  PopenJob(const Launcher::Config& config, const EnvReader& env, Start start);

  /// 0 in the process that owns the children, the copy's place in a copy.
  int local_rank() const { return local_rank_; }

  const LaunchPlan& plan() const { return plan_; }
  const Launcher::Config& config() const { return config_; }
  /// Waits for the children, at most the grace time, then stops them. Returns the first failing exit code or 0.
  int join();
  /// This process ends with an error of its own. Stops the children, unless one failed before and was the cause: then
  /// the whole process ends with that child's code.
  void abandon();
  /// True when a child has failed, or does within a moment: the watching thread then ends this process.
  bool is_failing();
  /// The process that owns the children; a fork of it does not.
  pid_t owner() const { return owner_; }

 private:
  using Clock = Supervisor::Clock;

  /// False in a copy.
  bool start_copies();
  void run(sigset_t mask, std::promise<void> started);
  void start_children(Supervisor& supervisor, sigset_t mask);
  void watch(Supervisor& supervisor);
  [[noreturn]] void fail(Supervisor& supervisor);
  void stop_at(Clock::time_point deadline);
  std::optional<Clock::time_point> deadline();
  void wait_until_ended();

  const Launcher::Config config_;
  const LaunchPlan plan_;
  const pid_t owner_;
  const Start start_;
  int local_rank_ = 0;
  std::vector<Child> copies_;  // until the watching thread takes them
  Descriptor wakeup_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::optional<Clock::time_point> deadline_;
  bool failing_ = false;
  bool ended_ = false;
  int code_ = 0;
};

}  // namespace fabric
