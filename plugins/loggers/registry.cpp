#include <fabric/plugins/loggers/registry.h>

#include <algorithm>
#include <mutex>

#include <fabric/nearest_name.h>
#include <fabric/plugins/loggers/csv_logger.h>
#include <fabric/plugins/loggers/tensorboard_logger.h>

namespace fabric {
namespace {

template <class L>
std::shared_ptr<Logger> make(const Tree::Map& params) {
  return std::make_shared<L>(from_tree<typename L::Config>(params));
}

struct Registry {
  std::mutex mutex;
  std::map<std::string, MakeLogger> all = {{"csv", make<CsvLogger>}, {"tensorboard", make<TensorBoardLogger>}};
};

Registry& registry() {
  static Registry one;
  return one;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

void register_logger(const std::string& name, MakeLogger make, bool override_existing) {
  if (name.empty() || !make) throw ConfigError("a logger needs a name and a function that makes it");
  std::lock_guard lock(registry().mutex);
  if (!override_existing && registry().all.contains(lower(name)))
    throw ConfigError("a logger named '" + lower(name) + "' exists already; pass override_existing to replace it");
  registry().all[lower(name)] = std::move(make);
}

std::vector<std::string> available_loggers() {
  std::lock_guard lock(registry().mutex);
  std::vector<std::string> names;
  for (const auto& [name, make] : registry().all) names.push_back(name);
  return names;
}

std::shared_ptr<Logger> make_logger(const Choice& choice) {
  MakeLogger make;
  {
    std::lock_guard lock(registry().mutex);
    if (auto found = registry().all.find(lower(choice.name)); found != registry().all.end()) make = found->second;
  }
  if (!make)
    throw ConfigError("unknown logger '" + choice.name + "'" + did_you_mean(lower(choice.name), available_loggers()));
  try {
    auto logger = make(choice.params);
    if (!logger) throw ConfigError("its function returned nothing");
    return logger;
  } catch (const ConfigError& error) {
    throw ConfigError("logger '" + choice.name + "': " + error.what());
  }
}

}  // namespace fabric
