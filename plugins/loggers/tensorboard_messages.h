#pragma once

#include <string>

#include <fabric/plugins/loggers/logger.h>

#include "plugins/loggers/event_file.h"

// The values that TensorBoard's plug-ins understand.
namespace fabric::tensorboard {

Message scalar(const std::string& tag, double value);
Message text(const std::string& tag, const std::string& content);
/// Which hyperparameters and metrics the experiment has.
Message experiment(const Tree& params, const Metrics& metrics);
/// This run's values.
Message session_start(const Tree& params);
Message session_end(bool success);

}  // namespace fabric::tensorboard
