#include <fabric/plugins/loggers/registry.h>

#include <algorithm>

#include <fabric/plugins/loggers/csv_logger.h>
#include <fabric/plugins/loggers/tensorboard_logger.h>

#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

template <class L>
std::shared_ptr<Logger> make(const Tree::Map& params) {
  return std::make_shared<L>(from_tree<typename L::Config>(params));
}

Registry<MakeLogger>& logger_registry() {
  static Registry<MakeLogger> all("logger", {{"csv", make<CsvLogger>, "metrics.csv in a folder for each run"},
                                             {"tensorboard", make<TensorBoardLogger>, "TensorBoard's event files"}});
  return all;
}

}  // namespace

void register_logger(const std::string& name, MakeLogger make, bool override_existing, std::string description) {
  logger_registry().add(name, std::move(make), override_existing, std::move(description));
}

std::vector<std::string> available_loggers() {
  auto names = logger_registry().names();
  std::sort(names.begin(), names.end());
  return names;
}

std::shared_ptr<Logger> make_logger(const Choice& choice) {
  auto make = logger_registry().get(choice.name).value;
  try {
    auto logger = make(choice.params);
    if (!logger) throw ConfigError("its function returned nothing");
    return logger;
  } catch (const ConfigError& error) {
    throw ConfigError("logger '" + choice.name + "': " + error.what());
  }
}

}  // namespace fabric
