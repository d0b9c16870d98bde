#include <fabric/strategies/registry.h>

#include <algorithm>

#include <fabric/strategies/single_device.h>

#include "fabric/base/registry/registry_internal.h"
#include "strategies/ddp/ddp_register.h"
#include "strategies/dp/dp_register.h"
#include "strategies/fsdp/fsdp_register.h"

namespace fabric {
namespace {

std::shared_ptr<Strategy> make_single_device(const Tree& params) {
  if (params.is_map() && !params.as_map().empty())
    throw ConfigError("strategy single_device has no settings; given: " + params.as_map().begin()->first);
  return std::make_shared<SingleDeviceStrategy>();
}

struct StrategyMaker {
  StrategyRegistry::Make make;
  Tree preset;
};

Registry<StrategyMaker>& strategy_makers() {
  static Registry<StrategyMaker> all("strategy", {});
  return all;
}

}  // namespace

StrategyRegistry::StrategyRegistry() {
  register_strategy("single_device", make_single_device, "one process, one device");
  register_ddp(*this);
  register_dp(*this);
  register_fsdp(*this);
}

StrategyRegistry& StrategyRegistry::instance() {
  static StrategyRegistry registry;
  return registry;
}

void StrategyRegistry::register_strategy(const std::string& name, Make make, std::string description, Tree preset,
                                         bool override_existing) {
  strategy_makers().add(name, {std::move(make), std::move(preset)}, override_existing, std::move(description));
}

std::shared_ptr<Strategy> StrategyRegistry::get(const std::string& name, const Tree& params) const {
  auto [known, maker, description] = strategy_makers().get(name);
  Tree merged = maker.preset.is_null() ? Tree(Tree::Map{}) : maker.preset;
  if (params.is_map())
    for (const auto& [key, value] : params.as_map()) merged[key] = value;
  auto strategy = maker.make(merged);
  if (!strategy) throw MisuseError("the function registered for strategy '" + known + "' returned nothing");
  return strategy;
}

bool StrategyRegistry::contains(const std::string& name) const { return strategy_makers().contains(name); }

std::string StrategyRegistry::automatic(bool several_processes) { return several_processes ? "ddp" : "single_device"; }

std::string StrategyRegistry::description(const std::string& name) const {
  return contains(name) ? strategy_makers().get(name).description : "";
}

std::vector<std::string> StrategyRegistry::available_strategies() const {
  auto names = strategy_makers().names();
  std::sort(names.begin(), names.end());
  return names;
}

void StrategyRegistry::remove(const std::string& name) { strategy_makers().remove(name); }

}  // namespace fabric
