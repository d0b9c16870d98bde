#pragma once

#include <memory>
#include <string>
#include <vector>

#include <fabric/fabric.h>

namespace fabric {

/// What a Config and the environment come to.
struct Resolved {
  std::shared_ptr<Strategy> strategy;
  std::vector<std::shared_ptr<Callback>> callbacks;
  std::vector<std::shared_ptr<Logger>> loggers;
  /// One line for each thing that was decided without the user's saying so.
  std::vector<std::string> decisions;
};

/// Order: variables, accelerator, devices, environment, strategy, precision, then the strategy is given its parts.
/// Throws ConfigError or UnavailableError; nothing is started and no device is touched.
Resolved resolve(Fabric::Config config, Fabric::Parts parts);

}  // namespace fabric
