#include <fabric/helpers/finetuning/strategy_adapter.h>

#include <algorithm>
#include <cctype>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/finetuning/frozen_parameters.h>
#include <fabric/helpers/finetuning/fsdp_adapter.h>
#include <fabric/state/state.h>

#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

// "a:b", "a.b" and "a::b" name the same adapter.
std::string normalized(const std::string& name) {
  std::string out;
  for (std::size_t i = 0; i < name.size(); ++i) {
    char c = name[i];
    if (c == ':' && i + 1 < name.size() && name[i + 1] == ':') ++i;
    if (c == ':' || c == '.') c = '.';
    out += c;
  }
  auto is_word = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.' || c == '-'; };
  if (out.empty() || out.front() == '.' || out.back() == '.' || out.find("..") != std::string::npos ||
      !std::all_of(out.begin(), out.end(), is_word))
    throw ConfigError("'" + name +
                      "' is no name of a strategy adapter; write the name it was registered under, with "
                      "or without a scope: 'MyAdapter', 'mine:MyAdapter' or 'mine.MyAdapter'");
  return out;
}

std::shared_ptr<StrategyAdapter> make_base(const Tree& config) {
  if (!config.is_null() && !(config.is_map() && config.as_map().empty()))
    throw ConfigError("strategy_adapter_cfg: the base adapter has no settings, given " +
                      (config.is_map() ? "'" + config.as_map().begin()->first + "'" : std::string(config.kind())));
  return std::make_shared<StrategyAdapter>();
}

Registry<StrategyAdapterRegistry::Make>& adapter_makers() {
  static Registry<StrategyAdapterRegistry::Make> all(
      "strategy adapter",
      {{"base", make_base, "parameters stay as the module has them"},
       {"fsdp", [](const Tree& config) { return std::make_shared<FsdpAdapter>(config); }, "units of FSDP"}},
      {.key = normalized});
  return all;
}

}  // namespace

StrategyAdapter::~StrategyAdapter() = default;

FinetuningSchedule StrategyAdapter::generate_schedule() const { return implicit_schedule(parameters_for_schedule()); }

bool StrategyAdapter::exec_phase(const Names& thawed) { return thaw_exactly(*target_.parameters, thawed); }

void StrategyAdapter::parameters_changed() {
  if (target_.strategy_module) target_.strategy_module->parameters_changed();
}

void StrategyAdapter::restore_model(const Value& state) {
  if (target_.strategy)
    target_.strategy->load_module_state(*target_.module, state, true);
  else
    load_module_state_dict(*target_.module, state, true);
}

void StrategyAdapter::restore_optimizer(torch::optim::Optimizer& optimizer, const Value& state) {
  if (target_.strategy)
    target_.strategy->load_optimizer_state(optimizer, state);
  else
    load_optimizer_state_dict(optimizer, state);
}

StrategyAdapterRegistry::StrategyAdapterRegistry() { adapter_makers(); }

StrategyAdapterRegistry& StrategyAdapterRegistry::instance() {
  static StrategyAdapterRegistry registry;
  return registry;
}

void StrategyAdapterRegistry::register_adapter(const std::string& name, Make make, bool override_existing) {
  adapter_makers().add(name, std::move(make), override_existing);
}

std::shared_ptr<StrategyAdapter> StrategyAdapterRegistry::make(const std::string& name, const Tree& config) const {
  if (!adapter_makers().contains(name))
    throw ConfigError("no strategy adapter is registered as '" + name + "'" + did_you_mean(name, available_adapters()) +
                      ". Call StrategyAdapterRegistry::instance().register_adapter before the scheduler is made");
  auto adapter = adapter_makers().get(name).value(config);
  if (!adapter) throw ConfigError("the function registered for strategy adapter '" + name + "' returned nothing");
  return adapter;
}

std::vector<std::string> StrategyAdapterRegistry::available_adapters() const { return adapter_makers().names(); }

void StrategyAdapterRegistry::remove(const std::string& name) {
  if (adapter_makers().contains(name)) adapter_makers().remove(name);
}

std::shared_ptr<StrategyAdapter> resolve_strategy_adapter(const AdapterRequest& request,
                                                          const FinetuningMessages& messages) {
  const auto& registry = StrategyAdapterRegistry::instance();
  if (!request.custom.empty()) {
    auto found = request.custom.find(request.strategy);
    if (found == request.custom.end()) {
      std::vector<std::string> named;
      for (const auto& [strategy, adapter] : request.custom) named.push_back(strategy);
      throw ConfigError("custom_strategy_adapters names no adapter for the strategy in use, '" + request.strategy +
                        "'" + did_you_mean(request.strategy, named));
    }
    return registry.make(found->second, request.config);
  }
  if (request.built_in.empty()) {
    std::string what = "the fine-tuning scheduler is not tested with strategy '" + request.strategy + "'";
    if (!request.allow_untested)
      throw ConfigError(what +
                        ". Use a strategy that names an adapter (Strategy::finetuning_adapter), register one yourself "
                        "and name it in custom_strategy_adapters, or set allow_untested");
    messages.warn(what + "; it is tried with the base adapter because of allow_untested");
    return registry.make("base", request.config);
  }
  return registry.make(request.built_in, request.config);
}

}  // namespace fabric
