#pragma once

#include <cstdint>
#include <string_view>

#include <fabric/export.h>

namespace fabric {

/// Tells `fabric run` that this rank lives, so that one that hangs is found, named and stopped
/// (fabric/docs/launcher.md, Heartbeats). The first call switches the watch on. May be called from any thread; never
/// waits, allocates nothing, and does nothing at all when no launcher listens. Processes that a rank forks do not speak
/// for it.
FABRIC_API void heartbeat() noexcept;
/// The same, and the rank has come to `step`, which should grow: restarts that get no further are given up in the end,
/// and `--progress-timeout` limits how long the number may stay the same.
FABRIC_API void heartbeat(std::int64_t step) noexcept;
/// The longest time between two heartbeats from now on, in place of `--heartbeat-timeout`; 0 or less: no limit.
FABRIC_API void set_heartbeat_timeout(double seconds) noexcept;
/// When this job fails it shall not be started again, whatever `--max-restarts` says: the data is broken, a setting is
/// wrong. `reason` is shown in the report. Ending with exit code 93 says the same.
FABRIC_API void do_not_retry(std::string_view reason = {}) noexcept;
/// True when a launcher listens.
FABRIC_API bool has_heartbeat_listener() noexcept;

/// A named part of the program, from construction to the end of the block, for the report about a rank that hangs.
/// Sections may be nested; the innermost is named, and the innermost with a limit of its own counts.
class FABRIC_API Section {
 public:
  /// `seconds`: how long the section may last, heartbeats or not; meanwhile `--heartbeat-timeout` does not count.
  /// 0: no limit of its own. Blanks in the name are written as underscores; it is cut after 63 bytes.
  [[nodiscard]] explicit Section(std::string_view name, double seconds = 0) noexcept;
  Section(Section&& other) noexcept;
  Section& operator=(Section&&) = delete;
  ~Section() { close(); }
  /// Leaves now instead of at the end of the block.
  void close() noexcept;

 private:
  static constexpr std::size_t kLongestName = 63;
  char name_[kLongestName + 1];
  bool is_open_ = true;
};

}  // namespace fabric
