#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace fabric::run {

struct HeartbeatLimits {
  double timeout = 600, warmup = 1800, progress = 0;  // seconds; 0: no limit
};

/// What one worker says on its heartbeat socket, line by line, and when that makes it a hung one. Lines:
///   beat                    it lives
///   step N                  it lives and has come to step N
///   section NAME [SECONDS]  it lives and entered a section, which may have a limit of its own
///   end                     it left the section
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
  /// "not heard of for 12.0 s (limit 10 s), in section 'all_reduce'"; nothing as long as all is well.
  std::optional<std::string> hang(Clock::time_point now) const;
  const std::string& section() const { return section_; }
  /// The highest step reported; -1: none.
  long long step() const { return step_; }
  bool forbids_retry() const { return forbids_retry_; }
  const std::string& why_no_retry() const { return why_; }

 private:
  void take(std::string_view line, Clock::time_point now);
  double silence_limit() const;

  HeartbeatLimits limits_;
  std::string partial_, section_, why_;
  double section_limit_ = 0;
  long long step_ = -1;
  long beats_ = 0;
  Clock::time_point last_beat_, last_step_;
  bool forbids_retry_ = false;
};

}  // namespace fabric::run
