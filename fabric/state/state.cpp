#include <fabric/state/state.h>

#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "fabric/state/checked_tensor_internal.h"

namespace fabric {
namespace {

std::string quoted_keys(const auto& map) {
  std::string out;
  for (const auto& [key, value] : map) out += (out.empty() ? "'" : ", '") + key + "'";
  return out.empty() ? "nothing" : out;
}

StatePart part_of(const StateEntry& entry, const StateAccess& access) {
  if (auto* module = entry.module()) return access.get_module(*module);
  if (auto* optimizer = entry.optimizer()) return access.get_optimizer(*optimizer);
  if (auto* object = entry.stateful()) return {object->state_dict()};
  return {*entry.value()};
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

bool leads_into(const Value::Map& kept, const std::string& path) {
  for (const auto& [key, value] : kept)
    if (path == key || (path.starts_with(key) && path[key.size()] == '.')) return true;
  return false;
}

void check(const StateEntry& entry, const Value& saved, const StateAccess& access, bool strict) {
  if (auto* module = entry.module(); module && strict && access.check_module) access.check_module(*module, saved);
  if (auto* optimizer = entry.optimizer(); optimizer && access.check_optimizer)
    access.check_optimizer(*optimizer, saved);
  if (!entry.module() && !entry.optimizer()) check_whole(saved);
}

void restore(StateEntry& entry, Value saved, const StateAccess& access, bool strict) {
  if (auto* module = entry.module())
    access.set_module(*module, saved, strict);
  else if (auto* optimizer = entry.optimizer())
    access.set_optimizer(*optimizer, saved);
  else if (auto* object = entry.stateful())
    object->load_state_dict(in_memory(std::move(saved)));
  else
    *entry.value() = in_memory(std::move(saved));
}

constexpr const char* kPerRank = "per_rank";

// What of a saved entry is this rank's; nothing when the saving run had no such rank.
const Value* own_of(const StateEntry& entry, const Value& saved, int rank) {
  if (!entry.per_rank() && !entry.stateful()) return &saved;
  const Value* all = saved.find(kPerRank);
  if (!all || saved.as_map().size() != 1 || !all->is_list())
    return rank == 0 || !entry.per_rank() ? &saved : nullptr;  // a run of one rank saved it
  auto index = static_cast<std::size_t>(rank);
  return index < all->as_list().size() ? &all->as_list()[index] : nullptr;
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

void require_keys(const State& target, const Value& checkpoint, bool strict) {
  if (!checkpoint.is_map())
    throw CheckpointKeyError(std::string("the checkpoint holds ") + checkpoint.kind() + " instead of a map of entries");
  const auto& saved = checkpoint.as_map();
  std::string missing;
  for (const auto& [key, entry] : target)
    if (!saved.contains(key)) missing += (missing.empty() ? "'" : ", '") + key + "'";
  if (strict && !missing.empty())
    throw CheckpointKeyError("the checkpoint lacks " + missing + "; it holds " + quoted_keys(saved) +
                             ". Load with strict = false to keep their present values");
}

}  // namespace

StateAccess StateAccess::plain() {
  return {
      .get_module = [](torch::nn::Module& module) { return StatePart{module_state_dict(module)}; },
      .set_module = [](torch::nn::Module& module, const Value& state,
                       bool strict) { load_module_state_dict(module, state, strict); },
      .get_optimizer = [](torch::optim::Optimizer& optimizer) { return StatePart{optimizer_state_dict(optimizer)}; },
      .set_optimizer = [](torch::optim::Optimizer& optimizer,
                          const Value& state) { load_optimizer_state_dict(optimizer, state); },
      .check_module = [](torch::nn::Module& module, const Value& state) { check_module_state_dict(module, state); },
      .check_optimizer = [](torch::optim::Optimizer& optimizer,
                            const Value& state) { check_optimizer_state_dict(optimizer, state); },
  };
}

StatePart collect_state(const State& state, const StateAccess& access, const StateFilter& filter) {
  require_filters_fit(state, filter);
  StatePart out{Value::Map{}};
  auto& values = out.values.as_map();
  for (const auto& [key, entry] : state) {
    StatePart part = part_of(entry, access);
    auto keep = filter.find(key);
    if (keep != filter.end()) {
      auto kept = filtered(key, part.values, keep->second);
      if (kept.empty()) continue;
      std::erase_if(part.shards, [&](const auto& shard) { return !leads_into(kept, shard.first); });
      part.values = std::move(kept);
    }
    for (auto& [path, shard] : part.shards) out.shards.emplace(key + "." + path, std::move(shard));
    if (entry.per_rank()) out.per_rank.insert(key);
    values[key] = std::move(part.values);
  }
  return out;
}

// In steps, so that all that can be found wrong anywhere is found before anything is changed anywhere: what is missing;
// what brings others into shape; whether modules and optimizers fit; the rest.
Value restore_state(State& target, Value checkpoint, const StateAccess& access, bool strict, const RestoreStep& run) {
  auto step = [&run](const std::function<void()>& work) { run ? run(work) : work(); };
  auto goes_first = [](const StateEntry& entry) { return entry.stateful() && entry.stateful()->restores_first(); };
  std::vector<std::string> kept;
  auto for_each_saved = [&](auto&& chosen, auto&& use) {
    for (auto& [key, entry] : target) {
      const Value* found = checkpoint.find(key);
      if (!found || !chosen(entry)) continue;
      if (const Value* own = own_of(entry, *found, access.rank))
        named(key, [&, &entry = entry] { use(entry, *own); });
      else
        kept.push_back(key);
    }
  };
  step([&] {
    require_keys(target, checkpoint, strict);
    for_each_saved(goes_first, [&](StateEntry&, const Value& own) { check_whole(own); });
  });
  step([&] {
    for_each_saved(goes_first, [&](StateEntry& entry, const Value& own) { restore(entry, own, access, strict); });
  });
  step([&] {
    for_each_saved([](const StateEntry&) { return true; },
                   [&](StateEntry& entry, const Value& own) { check(entry, own, access, strict); });
    for (const auto& [key, value] : checkpoint.as_map())
      if (!target.contains(key)) check_whole(value);
  });
  kept.clear();
  Value::Map rest;
  step([&] {
    for_each_saved([&](const StateEntry& entry) { return !goes_first(entry); },
                   [&](StateEntry& entry, const Value& own) { restore(entry, own, access, strict); });
    for (auto& [key, value] : checkpoint.as_map())
      if (!target.contains(key)) rest.append(key, in_memory(std::move(value)));
  });
  for (const auto& key : kept)
    log::warn("'" + key + "' is each rank's own, and the run that saved the checkpoint had no rank " +
              std::to_string(access.rank) + ": it stays as it is here");
  return rest;
}

}  // namespace fabric
