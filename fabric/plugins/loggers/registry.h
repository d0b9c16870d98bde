#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/base/env_reader.h>
#include <fabric/config.h>
#include <fabric/plugins/loggers/logger.h>

namespace fabric {

/// A logger by name, with its settings: "csv", "tensorboard", or what was registered. Throws ConfigError for an unknown
/// name or setting, naming the nearest valid one.
FABRIC_API std::shared_ptr<Logger> make_logger(const Choice& choice, const EnvReader& env = *process_env());

using MakeLogger = std::function<std::shared_ptr<Logger>(const Tree::Map& params)>;
/// Adds a kind of logger; throws ConfigError for a name that is taken unless `override_existing`. Names are
/// case-insensitive.
FABRIC_API void register_logger(const std::string& name, MakeLogger make, bool override_existing = false,
                                std::string description = "");
FABRIC_API std::vector<std::string> available_loggers();

}  // namespace fabric
