#include <fabric/state/state.h>

#include <vector>

#include <fabric/base/error.h>

namespace fabric {
namespace {

std::string quoted_keys(const auto& map) {
  std::string out;
  for (const auto& [key, value] : map) out += (out.empty() ? "'" : ", '") + key + "'";
  return out.empty() ? "nothing" : out;
}

Value state_of(const StateEntry& entry, const StateAccess& access) {
  if (auto* module = entry.module()) return access.get_module(*module);
  if (auto* optimizer = entry.optimizer()) return access.get_optimizer(*optimizer);
  if (auto* object = entry.stateful()) return object->state_dict();
  return *entry.value();
}

void require_filters_fit(const State& state, const StateFilter& filter) {
  for (const auto& [key, keep] : filter) {
    if (!state.contains(key))
      throw MisuseError("the filter names '" + key + "', which is not in the state; it holds " + quoted_keys(state));
    if (!keep) throw MisuseError("the filter for '" + key + "' is an empty function");
  }
}

Value::Map filtered(const std::string& key, const Value& value,
                    const std::function<bool(const std::string&, const Value&)>& keep) {
  if (!value.is_map())
    throw MisuseError("the filter for '" + key + "' has nothing to choose from: the entry is " + value.kind() +
                      ", and filters apply to maps, modules and optimizers");
  Value::Map kept;
  for (const auto& [name, item] : value.as_map())
    if (keep(name, item)) kept.append(name, item);
  return kept;
}

void check(const StateEntry& entry, const Value& saved, const StateAccess& access, bool strict) {
  if (auto* module = entry.module(); module && strict && access.check_module) access.check_module(*module, saved);
  if (auto* optimizer = entry.optimizer(); optimizer && access.check_optimizer)
    access.check_optimizer(*optimizer, saved);
}

void restore(StateEntry& entry, Value saved, const StateAccess& access, bool strict) {
  if (auto* module = entry.module())
    access.set_module(*module, saved, strict);
  else if (auto* optimizer = entry.optimizer())
    access.set_optimizer(*optimizer, saved);
  else if (auto* object = entry.stateful())
    object->load_state_dict(saved);
  else
    *entry.value() = std::move(saved);
}

// Says which entry of the state the error is about; the kind of error stays.
template <class Work>
void named(const std::string& key, Work&& work) {
  try {
    work();
  } catch (const CheckpointKeyError& error) {
    throw CheckpointKeyError("'" + key + "': " + error.what());
  }
}

}  // namespace

StateAccess StateAccess::plain() {
  return {module_state_dict,         load_module_state_dict,  optimizer_state_dict,
          load_optimizer_state_dict, check_module_state_dict, check_optimizer_state_dict};
}

Value collect_state(const State& state, const StateAccess& access, const StateFilter& filter) {
  require_filters_fit(state, filter);
  Value::Map out;
  for (const auto& [key, entry] : state) {
    Value value = state_of(entry, access);
    auto keep = filter.find(key);
    if (keep == filter.end()) {
      out[key] = std::move(value);
    } else if (auto kept = filtered(key, value, keep->second); !kept.empty()) {
      out[key] = std::move(kept);
    }
  }
  return out;
}

Value restore_state(State& target, Value checkpoint, const StateAccess& access, bool strict) {
  if (!checkpoint.is_map())
    throw CheckpointKeyError(std::string("the checkpoint holds ") + checkpoint.kind() + " instead of a map of entries");
  auto& saved = checkpoint.as_map();
  std::string missing;
  for (const auto& [key, entry] : target)
    if (!saved.contains(key)) missing += (missing.empty() ? "'" : ", '") + key + "'";
  if (strict && !missing.empty())
    throw CheckpointKeyError("the checkpoint lacks " + missing + "; it holds " + quoted_keys(saved) +
                             ". Load with strict = false to keep their present values");
  auto goes_first = [](const StateEntry& entry) { return entry.stateful() && entry.stateful()->restores_first(); };
  auto restore_those = [&](bool first) {
    for (auto& [key, entry] : target)
      if (Value* found = saved.find(key); found && goes_first(entry) == first)
        named(key, [&] { restore(entry, std::move(*found), access, strict); });
  };
  restore_those(true);
  for (const auto& [key, entry] : target)
    if (const Value* found = saved.find(key)) named(key, [&] { check(entry, *found, access, strict); });
  restore_those(false);
  Value::Map rest;
  for (auto& [key, value] : saved)
    if (!target.contains(key)) rest.append(key, std::move(value));
  return rest;
}

}  // namespace fabric
