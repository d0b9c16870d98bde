#include <fabric/plugins/loggers/registry.h>

#include <algorithm>

#include <fabric/plugins/loggers/csv_logger.h>
#include <fabric/plugins/loggers/tensorboard_logger.h>

#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

struct LoggerMaker {
  std::function<std::shared_ptr<Logger>(const Tree::Map& params, const EnvReader& env)> make;
};

template <class L>
std::shared_ptr<Logger> make_built_in(const Tree::Map& params, const EnvReader& env) {
  return std::make_shared<L>(from_tree<typename L::Config>(params), env);
}

Registry<LoggerMaker>& logger_registry() {
  static Registry<LoggerMaker> all("logger",
                                   {{"csv", {make_built_in<CsvLogger>}, "metrics.csv in a folder for each run"},
                                    {"tensorboard", {make_built_in<TensorBoardLogger>}, "TensorBoard's event files"}});
  return all;
}

}  // namespace

void register_logger(const std::string& name, MakeLogger make, bool override_existing, std::string description) {
  LoggerMaker maker;
  if (make) maker.make = [make = std::move(make)](const Tree::Map& params, const EnvReader&) { return make(params); };
  logger_registry().add(name, std::move(maker), override_existing, std::move(description));
}

std::vector<std::string> available_loggers() {
  auto names = logger_registry().names();
  std::sort(names.begin(), names.end());
  return names;
}

std::shared_ptr<Logger> make_logger(const Choice& choice, const EnvReader& env) {
  auto maker = logger_registry().get(choice.name).value;
  try {
    auto logger = maker.make(choice.params, env);
    if (!logger) throw ConfigError("its function returned nothing");
    return logger;
  } catch (const ConfigError& error) {
    throw ConfigError("logger '" + choice.name + "': " + error.what());
  }
}

}  // namespace fabric
