#include <fabric/base/error.h>
#include <fabric/base/scope.h>
#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/state/state.h>

namespace fabric {
namespace {

std::string keys_of(const Value& file) {
  std::string out;
  if (file.is_map())
    for (const auto& [key, value] : file.as_map()) out += (out.empty() ? "'" : ", '") + key + "'";
  return out.empty() ? "nothing" : out;
}

bool looks_like_optimizer(const Value& entry) { return entry.find("param_groups") && entry.find("state"); }

}  // namespace

Value BestCheckpoint::to_value() const {
  Value::List names;
  for (const auto& group : groups) names.push_back(Value::List(group.begin(), group.end()));
  return Value::Map{
      {"path", path}, {"depth", depth}, {"optimizer_class", optimizer_class}, {"groups", std::move(names)}};
}

BestCheckpoint BestCheckpoint::from_value(const Value& value) {
  BestCheckpoint record{value.at("path").as_string(),
                        static_cast<int>(value.at("depth").as_int()),
                        value.at("optimizer_class").as_string(),
                        {}};
  for (const auto& group : value.at("groups").as_list()) {
    auto& names = record.groups.emplace_back();
    for (const auto& name : group.as_list()) names.push_back(name.as_string());
  }
  return record;
}

// Called before the file's state is collected, so that the file holds a record of itself.
void FinetuningScheduler::Impl::note_save(const CheckpointEvent& event) {
  current_ckpt_depth = curr_depth;
  saved_metric.reset();
  if (checkpoint->monitor() && *checkpoint->monitor() == stepping.monitor) saved_metric = checkpoint->current_score();
  if (!event.top_k || !event.new_best) return;
  best_before = std::move(best);
  best = BestCheckpoint{event.path.string(), curr_depth, optimizer_class(*optimizer), {}};
  for (auto& group : param_groups::records(*optimizer, parameters, {})) best->groups.push_back(std::move(group.params));
}

void FinetuningScheduler::Impl::forget_save(const CheckpointEvent& event) {
  if (best && best->path == event.path.string()) best = std::exchange(best_before, std::nullopt);
}

bool FinetuningScheduler::Impl::restore_best() {
  if (checkpoint) {
    try {
      checkpoint->wait();
    } catch (const CheckpointError& error) {
      messages.warn(std::string("a checkpoint could not be written: ") + error.what());
    }
  }
  if (!best) {
    messages.warn("phase " + std::to_string(curr_depth) +
                  " begins with the present weights: no checkpoint has been written yet, so there is no best one");
    return false;
  }
  if (checkpoint) checkpoint->protect(best->path);
  Scope release([this, path = best->path] {
    if (checkpoint) checkpoint->release(path);
  });
  Value file = read_best();
  try {
    adapter->before_restore_model(file);
  } catch (const std::exception& error) {
    messages.warn(std::string("strategy adapter '") + adapter->name() +
                  "' could not prepare the checkpoint: " + error.what());
  }
  // Everything that can be wrong is found before anything is changed.
  const Value& weights = model_entry(file);
  std::optional<Value> optimizer_state = moments(file);
  adapter->restore_model(weights);
  if (optimizer_state) {
    adapter->before_restore_optimizer(*optimizer_state);
    adapter->restore_optimizer(*optimizer, *optimizer_state);
  }
  ++restores;
  return true;
}

// A file that one rank cannot read ends the run on all of them, and leaves none waiting.
Value FinetuningScheduler::Impl::read_best() const {
  Value file;
  try {
    peers.run_together(
        "the fine-tuning scheduler's restore of the best checkpoint", [&] { file = load_file(best->path); },
        ErrorKind::checkpoint);
  } catch (const Error& error) {
    throw_error(error.kind(), "the best checkpoint, '" + best->path + "' of phase " + std::to_string(best->depth) +
                                  ", cannot be restored for phase " + std::to_string(curr_depth) + ": " + error.what() +
                                  ". Put the file back, or set restore_best = false to go on from the present weights");
  }
  return file;
}

StateAccess FinetuningScheduler::Impl::state_access() const {
  return model.strategy() ? model.strategy()->state_access() : StateAccess::plain();
}

const Value& FinetuningScheduler::Impl::model_entry(const Value& file) const {
  const StateAccess access = state_access();
  if (const Value* named = file.find(config.model_key)) {
    access.check_module(*model, *named);
    return *named;
  }
  const Value* found = nullptr;
  if (file.is_map())
    for (const auto& [key, entry] : file.as_map()) {
      if (!entry.is_map() || looks_like_optimizer(entry)) continue;
      try {
        access.check_module(*model, entry);
      } catch (const Error&) {
        continue;
      }
      if (found)
        throw CheckpointKeyError("several entries of '" + best->path +
                                 "' fit the model; name the one in Config::model_key");
      found = &entry;
    }
  if (!found)
    throw CheckpointKeyError("the best checkpoint '" + best->path + "' has no entry for the model; it holds " +
                             keys_of(file) + ". Save the model as \"" + config.model_key +
                             "\", or name its entry in Config::model_key");
  return *found;
}

// The moments for the optimizer as it is now; nothing when the phase makes a new optimizer anyway.
std::optional<Value> FinetuningScheduler::Impl::moments(const Value& file) const {
  if (optimizer_reinits[static_cast<std::size_t>(curr_depth)]) return std::nullopt;
  const std::string present = optimizer_class(*optimizer);
  if (present != best->optimizer_class)
    throw CheckpointKeyError("the best checkpoint '" + best->path + "' was written in phase " +
                             std::to_string(best->depth) + " with " + best->optimizer_class + ", the optimizer is " +
                             present + " since: its moments cannot be restored in phase " + std::to_string(curr_depth) +
                             ". Give that phase a new_optimizer, too, or set restore_best = false");
  const Value* entry = file.find(config.optimizer_key);
  if (!entry && file.is_map())
    for (const auto& [key, other] : file.as_map())
      if (looks_like_optimizer(other)) entry = &other;
  if (!entry) {
    std::string what =
        "the best checkpoint '" + best->path + "' has no entry for the optimizer; it holds " + keys_of(file);
    if (!reinitialises())
      throw CheckpointKeyError(what + ". Save the optimizer as \"" + config.optimizer_key +
                               "\", name its entry in Config::optimizer_key, or set restore_best = false");
    messages.warn(what + ". Its moments stay as they are");
    return std::nullopt;
  }
  Value state = param_groups::with_saved_moments(*optimizer, parameters, *entry, best->groups);
  state_access().check_optimizer(*optimizer, state);
  return state;
}

}  // namespace fabric
