#include <fabric/helpers/finetuning/fsdp_adapter.h>

#include <torch/nn/module.h>
#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>

#include <algorithm>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/strategies/summon.h>

#include "fabric/helpers/finetuning/python_regex_internal.h"

namespace fabric {
namespace {

const Tree* setting(const Tree& config, const std::string& key) { return config.as_map().find(key); }

bool is_container(const torch::nn::Module& module) {
  return dynamic_cast<const torch::nn::ModuleListImpl*>(&module) ||
         dynamic_cast<const torch::nn::ModuleDictImpl*>(&module);
}

FsdpAdapter::PlanOptions options_of(const Tree& tree, const std::string& where, FsdpAdapter::PlanOptions defaults) {
  if (tree.is_null()) return defaults;
  try {
    return from_tree<FsdpAdapter::PlanOptions>(tree, defaults);
  } catch (const ConfigError& error) {
    throw ConfigError("strategy_adapter_cfg." + where + ": " + error.what());
  }
}

}  // namespace

FsdpAdapter::FsdpAdapter(const Tree& config) {
  if (config.is_null()) return;
  static const std::vector<std::string> known{"awp_overrides", "fsdp_plan", "fsdp_default_kwargs"};
  for (const auto& [key, value] : config.as_map())
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw ConfigError("strategy_adapter_cfg: '" + key + "' is not known" + did_you_mean(key, known));
  if (const auto* overrides = setting(config, "awp_overrides"))
    for (const auto& entry : overrides->as_list()) overrides_.push_back(entry.as_string());
  PlanOptions defaults;
  if (const auto* given = setting(config, "fsdp_default_kwargs"))
    defaults = options_of(*given, "fsdp_default_kwargs", defaults);
  if (const auto* plan = setting(config, "fsdp_plan"))
    for (const auto& [entry, options] : plan->as_map())
      plan_.emplace_back(entry, options_of(options, "fsdp_plan." + entry, defaults));
}

std::vector<std::string> FsdpAdapter::modules_like(const std::string& entry) const {
  std::vector<std::string> names, all;
  for (const auto& item : target().module->named_modules()) {
    if (item.key() == entry) return {entry};
    if (!item.key().empty()) all.push_back(item.key());
  }
  const PythonRegex pattern(entry);
  std::copy_if(all.begin(), all.end(), std::back_inserter(names),
               [&](const std::string& name) { return pattern.matches_start_of(name); });
  if (names.empty())
    throw ConfigError("strategy_adapter_cfg: no module's name is '" + entry + "' or begins like it" +
                      did_you_mean(entry, all));
  return names;
}

// The modules that an entry means: parts of others that it means as well go with them.
std::vector<std::string> FsdpAdapter::check_entry(const std::string& setting, const std::string& entry) const {
  std::vector<std::string> modules;
  const auto named = target().module->named_modules();
  for (const auto& name : modules_like(entry)) {
    const bool inside = std::any_of(modules.begin(), modules.end(), [&](const std::string& outer) {
      return name.size() > outer.size() && name.compare(0, outer.size(), outer) == 0 && name[outer.size()] == '.';
    });
    if (inside) continue;
    if (is_container(*named[name])) {
      target().messages.warn(setting + ": " + name + " is a " + named[name]->name() +
                             ", which is never called, so that it is left out; name its children");
      continue;
    }
    require_own_unit(setting, name);
    modules.push_back(name);
  }
  return modules;
}

void FsdpAdapter::require_own_unit(const std::string& setting, const std::string& module) const {
  if (!target().strategy_module) return;
  std::vector<std::string> others;
  for (const auto& name : target().parameters->below(module)) {
    const auto* source = target().parameters->source_of(name);
    auto unit = unit_of(*target().strategy_module, target().parameters->tensor(source ? *source : name));
    if (!unit || *unit == module) continue;
    const bool below = unit->size() > module.size() && unit->compare(0, module.size(), module) == 0;
    if (!below && std::find(others.begin(), others.end(), *unit) == others.end()) others.push_back(*unit);
  }
  if (others.empty()) return;
  target().messages.warn(setting + ": " + module + " is no unit of its own, since the model was sharded before the " +
                         "schedule was read; its parameters are in unit '" + others.front() +
                         "'. Name it in the strategy's setting 'wrap'");
}

void FsdpAdapter::apply_checkpointing(const std::vector<std::string>& modules, const std::string& kind) {
  if (modules.empty() || !target().strategy_module) return;
  if (kind != "composable" && kind != "wrapped" && kind != "wrapped_offload")
    target().messages.warn("fsdp_plan: act_ckpt '" + kind + "' is not known" +
                           did_you_mean(kind, {"composable", "wrapped", "wrapped_offload"}) +
                           "; 'composable' is taken instead");
  checkpointing_ = apply_activation_checkpointing(*target().strategy_module,
                                                  {.units = modules, .offload = kind == "wrapped_offload"});
}

void FsdpAdapter::before_init() {
  for (const auto& entry : overrides_) check_entry("awp_overrides", entry);
  std::vector<std::string> checkpointed;
  std::string kind;
  for (const auto& [entry, options] : plan_) {
    auto modules = check_entry("fsdp_plan", entry);
    if (options.reshard_after_forward || options.cpu_offload_policy)
      target().messages.warn("fsdp_plan." + entry +
                             ": reshard_after_forward and cpu_offload_policy are settings of the strategy for all of "
                             "the model (sharding_strategy, cpu_offload) and are left out here");
    if (options.act_ckpt.empty()) continue;
    checkpointed.insert(checkpointed.end(), modules.begin(), modules.end());
    kind = options.act_ckpt;
  }
  apply_checkpointing(checkpointed, kind);
}

void FsdpAdapter::validate_schedule(const FinetuningSchedule& schedule) {
  if (!target().strategy_module || schedule.phases.empty()) return;
  const auto& names = schedule.phases.front().params;
  const bool any = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    return unit_of(*target().strategy_module, target().parameters->tensor(name)).has_value();
  });
  if (!any)
    throw ConfigError(
        "phase 0 thaws nothing that the strategy shards (its setting 'ignored' leaves all of it out), so "
        "that no gradient would be synchronised. Put a parameter of a unit into phase 0, or take phase "
        "0's parameters out of 'ignored'");
}

}  // namespace fabric
