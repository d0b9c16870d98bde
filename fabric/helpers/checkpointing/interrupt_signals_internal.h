#pragma once

#include <string>
#include <vector>

#include <fabric/export.h>

namespace fabric {

/// While it lives, the named signals ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"; "TERM" will do) only set a
/// mark, which the loop reads where it suits it. The same signal a second time does what it did before. Handlers that
/// were there before come back at the end; objects end in the reverse order of their making.
class FABRIC_API InterruptSignals {
 public:
  /// Throws ConfigError for other names.
  explicit InterruptSignals(const std::vector<std::string>& names);
  ~InterruptSignals();
  InterruptSignals(const InterruptSignals&) = delete;
  InterruptSignals& operator=(const InterruptSignals&) = delete;

  /// The number of one that came since this object was made; 0: none.
  int received() const noexcept;
  static std::string name(int signal);

 private:
  std::vector<int> signals_;
};

}  // namespace fabric
