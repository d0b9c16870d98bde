#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include <fabric/base/rank_info.h>

#include "launcher/os/lines.h"
#include "launcher/start/child.h"

namespace fabric {

/// How a rank ended.
struct RankExit {
  RankInfo rank;
  pid_t pid = -1;
  int code = 0;    // 128 + n when killed by signal n
  int signal = 0;  // n, or 0
  std::vector<std::string> last_lines;

  /// "local rank 1 (rank 1, pid 77) was killed by signal 9 (SIGKILL)".
  std::string what() const;
  /// Its last lines of stderr as an indented block, or a remark that there are none.
  std::string tail() const;
};

/// Watches the children of this process: passes their stderr on in whole lines, collects their results and sees how
/// they end. Sleeps until something happens. All calls come from one thread, which blocks SIGPIPE.
class Supervisor {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kStopGrace{500};

  void add(const RankInfo& rank, Child child);
  /// Waits until a child says something or ends, `wakeup` becomes readable (-1: none), or the deadline passes.
  void poll(int wakeup, std::optional<Clock::time_point> deadline);
  /// SIGTERM, half a second, SIGKILL; returns when all have ended, or cannot be ended within a second more.
  void stop();
  bool all_ended() const;
  /// The first child, in time, that ended with another code than 0, and was not stopped by us.
  const std::optional<RankExit>& failure() const { return failure_; }
  /// The code of the first child that was stopped by us, or 0.
  int stopped_code() const { return stopped_code_; }
  /// Local ranks that still run.
  std::vector<int> running() const;
  const std::string& result(std::size_t child) const { return watched_[child].result; }
  /// A message of ours, after all lines that were read before.
  void say(const std::string& text);
  /// Writes what is left, but waits for a slow reader no longer than this.
  void flush(std::chrono::milliseconds limit);

 private:
  struct Watched {
    RankInfo rank;
    Child child;
    Lines lines;
    std::string prefix;
    std::string result;
    bool ended = false;
  };

  void read_error(Watched& watched, std::size_t limit);
  void read_result(Watched& watched);
  void reap(Watched& watched);
  void signal_all(int number);
  void write_some();

  std::vector<Watched> watched_;
  std::optional<RankExit> failure_;
  int stopped_code_ = 0;
  bool stopping_ = false;
  std::string output_;       // lines that were read …
  std::size_t written_ = 0;  // … and how much of them was written
};

}  // namespace fabric
