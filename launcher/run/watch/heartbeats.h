#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fabric::run {

struct HeartbeatLimits {
  double timeout = 600, warmup = 1800, progress = 0;  // seconds; 0: no limit
};

/// What one worker says on its heartbeat socket, line by line, and when that makes it a hung one. Lines:
///   beat                    it lives
///   step N                  it lives and has come to step N
///   section NAME [SECONDS]  it lives and entered a section, which may have a limit of its own; sections may be nested
///   end [NAME]              it left the innermost section, or the innermost of that name and all within
///   reset                   it is in no section: lines may have been lost
///   timeout SECONDS         the limit between two heartbeats from now on
///   noretry [WHY]           do not start the job again when it fails
/// Nothing is watched before the first line. Unknown and overlong lines count as `beat`.
class Heartbeats {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kLongestLine = 256;

  explicit Heartbeats(const HeartbeatLimits& limits) : limits_(limits) {}
  void feed(std::string_view bytes, Clock::time_point now);
  /// When the worker will count as hung if it stays silent.
  std::optional<Clock::time_point> deadline() const;
  /// "gave no heartbeat for 12.0 s (limit 10 s), in section 'all_reduce'"; nothing as long as all is well.
  std::optional<std::string> hang(Clock::time_point now) const;
  /// The innermost section, empty outside of all.
  std::string section() const { return sections_.empty() ? "" : sections_.back().name; }
  /// When it was last heard of; nothing before its first line.
  std::optional<Clock::time_point> last_beat() const { return is_watched_ ? std::optional(last_beat_) : std::nullopt; }
  /// The highest step reported; -1: none.
  long long step() const { return step_; }
  bool forbids_retry() const { return forbids_retry_; }
  const std::string& why_no_retry() const { return why_; }

 private:
  struct Section {
    std::string name;
    double limit = 0;  // seconds; 0: none of its own
    Clock::time_point entered;
  };
  static constexpr std::size_t kDeepest = 64;

  void take(std::string_view line, Clock::time_point now);
  void leave(const std::string& name);
  double silence_limit() const;
  /// The innermost section that has a limit; null: none.
  const Section* limited_section() const;

  HeartbeatLimits limits_;
  std::string partial_, why_;
  std::vector<Section> sections_;
  long long step_ = -1;
  long beats_ = 0;  // sections left out
  Clock::time_point last_beat_, last_step_;
  bool is_watched_ = false, forbids_retry_ = false;
};

}  // namespace fabric::run
