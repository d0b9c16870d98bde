#include <fabric/strategies/registry.h>

#include <algorithm>

#include <fabric/base/nearest_name.h>
#include <fabric/strategies/single_device.h>

#include "strategies/ddp/ddp_register.h"
#include "strategies/dp/dp_register.h"

namespace fabric {
namespace {

std::shared_ptr<Strategy> make_single_device(const Tree& params) {
  if (params.is_map() && !params.as_map().empty())
    throw ConfigError("strategy single_device has no settings; given: " + params.as_map().begin()->first);
  return std::make_shared<SingleDeviceStrategy>();
}

}  // namespace

StrategyRegistry::StrategyRegistry() {
  register_strategy("single_device", make_single_device, "one process, one device");
  register_dp(*this);
  register_ddp(*this);
}

StrategyRegistry& StrategyRegistry::instance() {
  static StrategyRegistry registry;
  return registry;
}

const StrategyRegistry::Entry* StrategyRegistry::find(const std::string& name) const {
  auto wanted = lower_case(name);
  for (const auto& entry : entries_)
    if (entry.name == wanted) return &entry;
  return nullptr;
}

void StrategyRegistry::register_strategy(const std::string& name, Make make, std::string description, Tree preset,
                                         bool override_existing) {
  if (name.empty()) throw ConfigError("a strategy needs a name");
  if (find(name)) {
    if (!override_existing)
      throw ConfigError("a strategy named '" + lower_case(name) +
                        "' exists already; pass override_existing to replace it");
    remove(name);
  }
  entries_.push_back({lower_case(name), std::move(make), std::move(description), std::move(preset)});
}

std::shared_ptr<Strategy> StrategyRegistry::get(const std::string& name, const Tree& params) const {
  const Entry* entry = find(name);
  if (!entry)
    throw ConfigError("unknown strategy '" + name + "'" + did_you_mean(lower_case(name), available_strategies()));
  Tree merged = entry->preset.is_null() ? Tree(Tree::Map{}) : entry->preset;
  if (params.is_map())
    for (const auto& [key, value] : params.as_map()) merged[key] = value;
  return entry->make(merged);
}

bool StrategyRegistry::contains(const std::string& name) const { return find(name) != nullptr; }

std::string StrategyRegistry::description(const std::string& name) const {
  const Entry* entry = find(name);
  return entry ? entry->description : "";
}

std::vector<std::string> StrategyRegistry::available_strategies() const {
  std::vector<std::string> names;
  for (const auto& entry : entries_) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  return names;
}

void StrategyRegistry::remove(const std::string& name) {
  auto wanted = lower_case(name);
  if (std::erase_if(entries_, [&](const Entry& entry) { return entry.name == wanted; }) == 0)
    throw ConfigError("unknown strategy '" + name + "'" + did_you_mean(wanted, available_strategies()));
}

}  // namespace fabric
