#pragma once

#include <map>
#include <optional>
#include <string>

#include <fabric/launcher/launching.h>

#include "fabric/base/ports_internal.h"

namespace fabric {

/// What the ranks of this node are told; made once per launch.
class LaunchPlan {
 public:
  /// Chooses the main address and port. Throws ConfigError for settings that cannot be, LaunchError for a taken port.
  LaunchPlan(const Launcher::Config& config, const EnvReader& env);

  RankInfo rank(int local_rank) const;
  /// The variables that tell a rank its place.
  std::map<std::string, std::string> variables(int local_rank) const;
  /// OMP_NUM_THREADS for a program that is yet to start: the processors of this process divided by the ranks, at least
  /// 1, unless the user has set it. A running process has read the variable already and must be told in another way.
  const std::string& threads() const { return threads_; }

 private:
  Launcher::Config config_;
  std::string threads_;
  std::string job_;  // FABRIC_JOB_ID; empty: none
  /// Held as long as the plan, so that no other process is given the port before rank 0 listens.
  std::optional<PortReservation> reservation_;
};

/// The place of this process by the variables above, if it is a rank already (LOCAL_RANK is set).
std::optional<RankInfo> running_rank(const EnvReader& env);

/// Set in processes that our in-program launchers started, and in the one that called them as rank 0.
inline constexpr const char* kLaunchedVariable = "FABRIC_LAUNCHED";

}  // namespace fabric
