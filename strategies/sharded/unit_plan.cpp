#include "strategies/sharded/unit_plan.h"

#include <fnmatch.h>
#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>

#include <algorithm>
#include <map>
#include <set>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric::sharded {
namespace {

bool is_sequence(const torch::nn::Module& module) {
  return dynamic_cast<const torch::nn::ModuleListImpl*>(&module) ||
         dynamic_cast<const torch::nn::SequentialImpl*>(&module);
}

bool lies_in(const std::string& name, const std::string& outer) {
  return outer.empty() ||
         (name.size() > outer.size() && name.compare(0, outer.size(), outer) == 0 && name[outer.size()] == '.');
}

std::string joined(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

bool matches_text(const std::string& pattern, const std::string& text) {
  return fnmatch(pattern.c_str(), text.c_str(), 0) == 0;
}

// "BlockImpl", "Block", and with their namespaces.
std::vector<std::string> class_names(const torch::nn::Module& module) {
  std::string full = module.name();
  auto colon = full.rfind("::");
  std::vector<std::string> names{full};
  if (colon != std::string::npos) names.push_back(full.substr(colon + 2));
  for (std::size_t i = 0, count = names.size(); i < count; ++i)
    if (names[i].size() > 4 && names[i].compare(names[i].size() - 4, 4, "Impl") == 0)
      names.push_back(names[i].substr(0, names[i].size() - 4));
  return names;
}

bool matches_module(const std::string& pattern, const std::string& name, const torch::nn::Module& module) {
  if (matches_text(pattern, name)) return true;
  auto names = class_names(module);
  return std::any_of(names.begin(), names.end(), [&](const auto& each) { return matches_text(pattern, each); });
}

IsUnit from_names(std::set<std::string> names) {
  return [names = std::move(names)](const std::string& name, const torch::nn::Module&) { return names.contains(name); };
}

bool is_ignored(const std::vector<std::string>& patterns, std::vector<bool>& matched, const std::string& module_name,
                const torch::nn::Module& owner, const std::string& name) {
  bool ignored = false;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    bool fits = matches_text(patterns[i], name) || matches_module(patterns[i], module_name, owner);
    // A module above it.
    for (auto dot = module_name.rfind('.'); !fits && dot != std::string::npos && dot > 0;
         dot = module_name.rfind('.', dot - 1))
      fits = matches_text(patterns[i], module_name.substr(0, dot));
    matched[i] = matched[i] || fits;
    ignored |= fits;
  }
  return ignored;
}

}  // namespace

IsUnit blocks_of(const torch::nn::Module& module) {
  std::set<std::string> units;
  auto modules = module.named_modules();
  auto inside = [&](const std::string& name) {
    return std::any_of(units.begin(), units.end(), [&](const auto& unit) { return lies_in(name, unit); });
  };
  for (const auto& item : modules) {  // a module comes before its parts
    if (!is_sequence(*item.value()) || inside(item.key())) continue;
    for (const auto& child : item.value()->named_children()) {
      if (is_sequence(*child.value()) || child.value()->parameters().empty()) continue;
      units.insert(joined(item.key(), child.key()));
    }
  }
  for (const auto& child : module.named_children())
    if (!is_sequence(*child.value())) units.insert(child.key());
  return from_names(std::move(units));
}

IsUnit units_of_size(const torch::nn::Module& module, std::int64_t min_elements) {
  std::set<std::string> units;
  std::map<std::string, std::int64_t> taken;  // elements that units below a module have
  auto modules = module.named_modules();
  for (std::size_t i = modules.size(); i-- > 0;) {  // a module's parts before itself
    const auto& item = modules[i];
    if (item.key().empty() || is_sequence(*item.value())) continue;
    std::int64_t elements = 0;
    for (const auto& parameter : item.value()->parameters()) elements += parameter.numel();
    for (const auto& [name, count] : taken)
      if (lies_in(name, item.key())) elements -= count;
    if (elements < min_elements) continue;
    units.insert(item.key());
    taken[item.key()] = elements;
  }
  return from_names(std::move(units));
}

IsUnit units_by_pattern(const torch::nn::Module& module, const std::vector<std::string>& patterns) {
  std::set<std::string> units;
  for (const auto& pattern : patterns) {
    bool any = false;
    std::vector<std::string> known;
    for (const auto& item : module.named_modules()) {
      if (item.key().empty()) continue;
      known.push_back(item.key());
      for (auto& name : class_names(*item.value())) known.push_back(std::move(name));
      if (!matches_module(pattern, item.key(), *item.value())) continue;
      any = true;
      units.insert(item.key());
    }
    if (!any)
      throw ConfigError("fsdp: no module's name or class is like '" + pattern + "'" + did_you_mean(pattern, known));
  }
  return from_names(std::move(units));
}

std::vector<UnitPlan> plan_units(torch::nn::Module& module, const IsUnit& is_unit,
                                 const std::vector<std::string>& ignored) {
  std::vector<UnitPlan> plans;
  std::map<std::string, std::size_t> by_unit;
  std::vector<std::string> units;
  std::set<const void*> seen;
  std::vector<bool> matched(ignored.size(), false);
  auto modules = module.named_modules();
  for (const auto& item : modules)
    if (!item.key().empty() && is_unit(item.key(), *item.value())) units.push_back(item.key());
  for (const auto& item : modules) {
    std::string owner;  // the innermost unit around it
    for (const auto& unit : units)
      if ((unit == item.key() || lies_in(item.key(), unit)) && unit.size() > owner.size()) owner = unit;
    for (const auto& parameter : item.value()->named_parameters(/*recurse=*/false)) {
      auto name = joined(item.key(), parameter.key());
      if (is_ignored(ignored, matched, item.key(), *item.value(), name)) continue;
      if (!seen.insert(parameter.value().unsafeGetTensorImpl()).second) continue;
      auto [found, is_new] = by_unit.emplace(owner, plans.size());
      if (is_new) plans.push_back({owner.empty() ? "(rest)" : owner});
      auto& plan = plans[found->second];
      plan.parameters.push_back({name, parameter.value(), item.value().get()});
      if (plan.owners.empty() || plan.owners.back() != item.value()) plan.owners.push_back(item.value());
    }
  }
  for (std::size_t i = 0; i < ignored.size(); ++i)
    if (!matched[i])
      throw ConfigError("fsdp: no parameter's or module's name is like '" + ignored[i] + "', which is to be ignored");
  return plans;
}

}  // namespace fabric::sharded
