#include <cmath>
#include <memory>
#include <unordered_map>
#include <unordered_set>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>

#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/state/state.h>

#include "fabric/state/checked_tensor_internal.h"
#include "fabric/state/optimizer_archive_internal.h"
#include "fabric/state/optimizer_fields_internal.h"

namespace fabric {
namespace {

using namespace optimizer_fields;
using torch::optim::Optimizer;
using torch::optim::OptimizerParamState;

[[noreturn]] void misfit(const std::string& why) {
  throw CheckpointKeyError("the saved optimizer state does not fit: " + why);
}

// --- writing

struct Writer {
  Value::Map& out;
  void operator()(const char* name, double value, Kind = {}) { out.append(name, value); }
  void operator()(const char* name, bool value, Kind = {}) { out.append(name, value); }
  void operator()(const char* name, std::int64_t value, Kind = {}) { out.append(name, value); }
  void operator()(const char* name, const std::tuple<double, double>& pair) {
    out.append(name, Value::List{std::get<0>(pair), std::get<1>(pair)});
  }
  template <class T>
  void operator()(const char* name, const std::optional<T>& value) {
    out.append(name, value ? Value(*value) : Value());
  }
  void operator()(const char* name, const at::Tensor& tensor, Kind) {
    if (tensor.defined()) out.append(name, tensor.detach());
  }
  void operator()(const char* name, const std::deque<at::Tensor>& tensors, Kind) { out.append(name, list(tensors)); }
  void operator()(const char* name, const std::optional<std::vector<at::Tensor>>& tensors, Kind) {
    if (tensors) out.append(name, list(*tensors));
  }
  static Value list(const auto& tensors) {
    Value::List items;
    items.reserve(tensors.size());
    for (const auto& tensor : tensors) {
      Value& item = items.emplace_back();
      if (tensor.defined()) item = tensor.detach();
    }
    return items;
  }
};

// Which of a parameter's state tensors are parts as the parameter is.
struct ShardFinder {
  std::map<std::string, Shard>& shards;
  const std::string& path;
  const at::Tensor& parameter;
  const Shard& shard;
  template <class T>
  void operator()(const char* name, const T& field, Kind kind) {
    if constexpr (std::is_same_v<T, at::Tensor>)
      if (kind != Kind::plain && field.defined() && field.sizes() == parameter.sizes())
        shards.emplace(path + name, shard);
  }
};

// True when every group and every state is of one of the kinds of optimizer_fields.h.
bool is_known(const Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups()) {
    bool states_fit = true;
    bool known = with_family(group.options(), [&]<class F>(F) {
      for (const auto& parameter : group.params()) {
        auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
        if (found != optimizer.state().end())
          states_fit &= dynamic_cast<typename F::State*>(found->second.get()) != nullptr;
      }
    });
    if (!known || !states_fit) return false;
  }
  return true;
}

Value::Map known_states(const Optimizer& optimizer) {
  Value::Map states;
  std::int64_t index = 0;
  for (const auto& group : optimizer.param_groups()) {
    with_family(group.options(), [&]<class F>(F) {
      for (const auto& parameter : group.params()) {
        auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
        if (found != optimizer.state().end()) {
          Value::Map fields;
          visit_state<F>(static_cast<const typename F::State&>(*found->second), Writer{fields});
          states.append(std::to_string(index), std::move(fields));
        }
        ++index;
      }
    });
  }
  return states;
}

Value::List group_list(const Optimizer& optimizer) {
  Value::List groups;
  std::int64_t index = 0;
  for (const auto& group : optimizer.param_groups()) {
    Value::Map entry;
    with_family(group.options(), [&]<class F>(F) {
      visit_options<F>(static_cast<const typename F::Options&>(group.options()), Writer{entry});
    });
    Value::List params;
    for (std::size_t i = 0; i < group.params().size(); ++i) params.push_back(index++);
    entry.append("params", std::move(params));
    groups.push_back(std::move(entry));
  }
  return groups;
}

// --- reading

const at::Tensor* tensor_in(const Value& value) {
  return value.is<at::Tensor>() && value.as<at::Tensor>().defined() ? &value.as<at::Tensor>() : nullptr;
}

double number(const std::string& name, const Value& value) {
  if (value.is_number()) return value.as_double();
  if (value.is_bool()) return value.as_bool() ? 1 : 0;
  if (const auto* tensor = tensor_in(value); tensor && tensor->numel() == 1 && !tensor->is_complex())
    return in_memory(*tensor).item().toDouble();
  misfit("'" + name + "' should be a number, not " + value.kind());
}

std::int64_t integer(const std::string& name, const Value& value) {
  if (value.is_int()) return value.as_int();
  double exact = number(name, value);
  if (!(std::abs(exact) < 9e15) || exact != std::floor(exact)) misfit("'" + name + "' should be a whole number");
  return static_cast<std::int64_t>(exact);
}

struct OptionReader {
  const Value::Map& saved;
  const Value* find(const char* name) const { return saved.find(name); }
  void operator()(const char* name, double& out) {
    if (const Value* value = find(name)) out = number(name, *value);
  }
  void operator()(const char* name, bool& out) {
    if (const Value* value = find(name)) out = number(name, *value) != 0;
  }
  void operator()(const char* name, std::int64_t& out) {
    if (const Value* value = find(name)) out = integer(name, *value);
  }
  void operator()(const char* name, std::tuple<double, double>& out) {
    const Value* value = find(name);
    if (!value) return;
    if (!value->is_list() || value->as_list().size() != 2) misfit(std::string("'") + name + "' should be two numbers");
    out = {number(name, value->as_list()[0]), number(name, value->as_list()[1])};
  }
  void operator()(const char* name, std::optional<std::int64_t>& out) {
    if (const Value* value = find(name)) out = value->is_null() ? std::nullopt : std::optional(integer(name, *value));
  }
  void operator()(const char* name, std::optional<std::string>& out) {
    const Value* value = find(name);
    if (!value) return;
    if (!value->is_null() && !value->is_string()) misfit(std::string("'") + name + "' should be a string or null");
    out = value->is_null() ? std::nullopt : std::optional(value->as_string());
  }
};

/// A parameter, and where it lies in the whole one where several ranks hold parts of it.
struct Slot {
  std::size_t group;
  at::Tensor parameter;
  std::optional<Shard> shard;
  at::IntArrayRef global_shape() const {
    return shard ? at::IntArrayRef(shard->global_shape) : at::IntArrayRef(parameter.sizes());
  }
};

// Tensors are only borrowed here; `own` copies them once everything has been checked.
struct StateReader {
  const Value::Map& saved;
  const Slot& slot;
  std::string where;
  std::size_t used = 0;

  const Value* find(const char* name) {
    const Value* value = saved.find(name);
    if (value) ++used;
    return value && !value->is_null() ? value : nullptr;
  }
  void operator()(const char* name, std::int64_t& out, Kind) {
    if (const Value* value = find(name)) out = integer(where + "." + name, *value);
  }
  void operator()(const char* name, double& out, Kind) {
    if (const Value* value = find(name)) out = number(where + "." + name, *value);
  }
  void operator()(const char* name, at::Tensor& out, Kind kind) {
    const Value* value = find(name);
    if (!value && kind == Kind::required) misfit(where + " has no '" + name + "'");
    if (value) out = tensor(name, *value);
    if (value && kind != Kind::plain && out.sizes() != slot.global_shape())
      misfit(where + "." + name + " has another shape than its parameter");
  }
  void operator()(const char* name, std::deque<at::Tensor>& out, Kind) {
    if (const Value* value = find(name))
      for (auto& item : tensors(name, *value)) out.push_back(std::move(item));
  }
  void operator()(const char* name, std::optional<std::vector<at::Tensor>>& out, Kind) {
    if (const Value* value = find(name)) out = tensors(name, *value);
  }
  at::Tensor tensor(const char* name, const Value& value) {
    if (const auto* found = tensor_in(value)) return *found;
    return at::scalar_tensor(number(where + "." + name, value), at::TensorOptions(at::kDouble));
  }
  std::vector<at::Tensor> tensors(const char* name, const Value& value) {
    if (!value.is_list()) misfit(where + "." + name + " should be a list");
    std::vector<at::Tensor> out;
    for (const auto& item : value.as_list()) out.push_back(item.is_null() ? at::Tensor() : tensor(name, item));
    return out;
  }
};

// Floating state takes the parameter's type, all takes its device: what Python's optimizers do. Of a field of the
// parameter's shape a rank takes the box that its part of the parameter is.
struct Own {
  const Slot& slot;
  bool only_checks;  // whether the bytes in the file are those that were written
  void operator()(const char*, std::int64_t&, Kind) {}
  void operator()(const char*, double&, Kind) {}
  void operator()(const char*, at::Tensor& tensor, Kind kind) { copy(tensor, kind); }
  void operator()(const char*, std::deque<at::Tensor>& tensors, Kind kind) {
    for (auto& tensor : tensors) copy(tensor, kind);
  }
  void operator()(const char*, std::optional<std::vector<at::Tensor>>& tensors, Kind kind) {
    if (!tensors) return;
    for (auto& tensor : *tensors) copy(tensor, kind);
  }
  void copy(at::Tensor& tensor, Kind kind) const {
    if (!tensor.defined()) return;
    const bool whole = !slot.shard || kind == Kind::plain;
    if (only_checks) {
      if (whole) return check_whole(tensor);
      for (const auto& [box, offsets] : local_boxes(slot.parameter, *slot.shard))
        check_box(tensor, offsets, box.sizes());
      return;
    }
    bool follows = tensor.is_floating_point() && slot.parameter.is_floating_point();
    auto type = follows ? slot.parameter.scalar_type() : tensor.scalar_type();
    if (whole) {
      tensor = in_memory(tensor).detach().to(slot.parameter.device(), type, /*non_blocking=*/false, /*copy=*/true);
      return;
    }
    at::Tensor mine = at::empty(slot.parameter.sizes(), at::TensorOptions(type).device(slot.parameter.device()));
    for (auto& [box, offsets] : local_boxes(mine, *slot.shard)) read_box(tensor, offsets, box);
    tensor = std::move(mine);
  }
};

const Value& required(const Value& state, const char* key) {
  if (!state.is_map()) misfit(std::string("it should be a map, not ") + state.kind());
  const Value* found = state.find(key);
  if (!found) misfit(std::string("it has no '") + key + "'");
  return *found;
}

const Value::Map& map_of(const Value& value, const std::string& what) {
  if (!value.is_map()) misfit(what + " should be a map, not " + value.kind());
  return value.as_map();
}

std::string label(const Value& index) {
  return index.is_string() ? index.as_string() : std::to_string(integer("params", index));
}

/// The saved labels of the parameters, in the optimizer's order.
std::vector<std::pair<std::string, Slot>> match_groups(const Optimizer& optimizer, const Value& state,
                                                       const ShardOf& shard_of = {}) {
  const Value& groups = required(state, "param_groups");
  if (!groups.is_list()) misfit(std::string("'param_groups' should be a list, not ") + groups.kind());
  const auto& mine = optimizer.param_groups();
  if (groups.as_list().size() != mine.size())
    misfit("it has " + std::to_string(groups.as_list().size()) + " parameter groups, the optimizer has " +
           std::to_string(mine.size()));
  std::vector<std::pair<std::string, Slot>> slots;
  for (std::size_t g = 0; g < mine.size(); ++g) {
    const Value* params = map_of(groups.as_list()[g], "a group").find("params");
    if (!params || !params->is_list()) misfit("group " + std::to_string(g) + " has no list 'params'");
    const auto& labels = params->as_list();
    if (labels.size() != mine[g].params().size())
      misfit("its group " + std::to_string(g) + " has " + std::to_string(labels.size()) +
             " parameters, the optimizer's has " + std::to_string(mine[g].params().size()));
    for (std::size_t i = 0; i < labels.size(); ++i) {
      const at::Tensor& parameter = mine[g].params()[i];
      slots.push_back({label(labels[i]), {g, parameter, shard_of ? shard_of(parameter) : std::nullopt}});
    }
  }
  return slots;
}

template <class F>
void check_switches(const Value::Map& group) {
  if (const Value* maximize = group.find("maximize"); maximize && number("maximize", *maximize) != 0)
    misfit("it was saved with maximize = True, which LibTorch's optimizers do not offer");
  if constexpr (kIsAdam<F>) {
    const Value* decoupled = group.find("decoupled_weight_decay");
    if (decoupled && (number("decoupled_weight_decay", *decoupled) != 0) != std::is_same_v<F, AdamW>)
      misfit(std::is_same_v<F, AdamW> ? "Adam wrote it, and this is AdamW" : "AdamW wrote it, and this is Adam");
  }
}

struct NewState {
  Slot slot;
  std::unique_ptr<OptimizerParamState> state;
  void (*own)(OptimizerParamState& state, const Slot& slot, bool only_checks);
};

template <class F>
void own_state(OptimizerParamState& state, const Slot& slot, bool only_checks) {
  visit_state<F>(static_cast<typename F::State&>(state), Own{slot, only_checks});
}

template <class F>
NewState read_state(const Value& saved, const Slot& slot, const std::string& name) {
  auto state = std::make_unique<typename F::State>();
  StateReader reader{map_of(saved, "the state of parameter " + name), slot, "the state of parameter " + name};
  visit_state<F>(*state, reader);
  if (reader.used != reader.saved.size()) {
    std::string keys;
    for (const auto& [key, value] : reader.saved) keys += (keys.empty() ? "" : ", ") + key;
    misfit(reader.where + " has {" + keys + "}; another kind of optimizer wrote it");
  }
  return {slot, std::move(state), own_state<F>};
}

/// Everything that can be wrong is found here; nothing is changed.
std::vector<NewState> plan_known(Optimizer& optimizer, const Value& state, const ShardOf& shard_of) {
  auto slots = match_groups(optimizer, state, shard_of);
  const auto& saved_states = map_of(required(state, "state"), "'state'");
  const auto& groups = state.find("param_groups")->as_list();
  std::unordered_map<std::string, const Value*> by_label;
  for (const auto& [name, value] : saved_states) by_label.emplace(name, &value);

  std::vector<NewState> states;
  std::unordered_set<std::string> seen;
  for (const auto& [name, slot] : slots) {
    if (!seen.insert(name).second) misfit("parameter " + name + " appears twice in its groups");
    auto saved = by_label.find(name);
    with_family(optimizer.param_groups()[slot.group].options(), [&]<class F>(F) {
      if (saved != by_label.end())
        states.push_back(read_state<F>(*saved->second, slot, name));
      else if (kNeedsAllState<F>)
        misfit("it has no state for parameter " + name);
    });
  }
  for (const auto& [name, value] : saved_states)
    if (!seen.contains(name)) misfit("it has state for a parameter '" + name + "' that is in none of its groups");
  for (std::size_t g = 0; g < groups.size(); ++g) {
    auto trial = optimizer.param_groups()[g].options().clone();
    with_family(*trial, [&]<class F>(F) {
      check_switches<F>(groups[g].as_map());
      visit_options<F>(static_cast<typename F::Options&>(*trial), OptionReader{groups[g].as_map()});
    });
  }
  return states;
}

void load_known(Optimizer& optimizer, const Value& state, const ShardOf& shard_of) {
  auto states = plan_known(optimizer, state, shard_of);
  // Reading can fail, so it comes before the first change.
  for (auto& [slot, fresh, own] : states) own(*fresh, slot, false);
  const auto& groups = state.find("param_groups")->as_list();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    auto& options = optimizer.param_groups()[g].options();  // in place: the user may hold a reference
    with_family(options, [&]<class F>(F) {
      visit_options<F>(static_cast<typename F::Options&>(options), OptionReader{groups[g].as_map()});
    });
  }
  for (const auto& group : optimizer.param_groups())
    for (const auto& parameter : group.params()) optimizer.state().erase(parameter.unsafeGetTensorImpl());
  for (auto& [slot, fresh, own] : states) optimizer.state()[slot.parameter.unsafeGetTensorImpl()] = std::move(fresh);
}

// --- optimizers of the user's own

Value unknown_state_dict(const Optimizer& optimizer) {
  at::Tensor archive = optimizer_archive(optimizer);
  if (!archive.defined() && !optimizer.state().empty())
    log::warn_once(
        "an optimizer of your own class is saved without its state: override its save and load, use LibTorch's "
        "option and state types, or derive it from fabric::Stateful");
  return Value::Map{{"archive", archive}, {"param_groups", group_list(optimizer)}};
}

const at::Tensor& check_unknown(const Optimizer& optimizer, const Value& state) {
  match_groups(optimizer, state);
  const Value& archive = required(state, "archive");
  if (!archive.is<at::Tensor>()) misfit("'archive' should be a tensor of bytes");
  const auto& bytes = archive.as<at::Tensor>();
  if (bytes.defined() && (bytes.dim() != 1 || bytes.scalar_type() != at::kByte)) misfit("'archive' should hold bytes");
  return bytes;
}

}  // namespace

Value optimizer_state_dict(const Optimizer& optimizer) {
  if (const auto* stateful = dynamic_cast<const Stateful*>(&optimizer)) return stateful->state_dict();
  if (!is_known(optimizer)) return unknown_state_dict(optimizer);
  return Value::Map{{"state", known_states(optimizer)}, {"param_groups", group_list(optimizer)}};
}

std::map<std::string, Shard> optimizer_shards(const Optimizer& optimizer, const ShardOf& shard_of) {
  std::map<std::string, Shard> shards;
  if (!shard_of || dynamic_cast<const Stateful*>(&optimizer)) return shards;
  const bool known = is_known(optimizer);
  std::int64_t index = -1;
  for (const auto& group : optimizer.param_groups())
    for (const auto& parameter : group.params()) {
      auto shard = (++index, shard_of(parameter));
      if (!shard) continue;
      if (!known)
        throw CheckpointError(
            "an optimizer of a class of your own cannot be saved here: its parameters are spread over ranks. Use "
            "LibTorch's option and state types, or derive it from fabric::Stateful");
      auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
      if (found == optimizer.state().end()) continue;
      const std::string path = "state." + std::to_string(index) + ".";
      with_family(group.options(), [&]<class F>(F) {
        visit_state<F>(static_cast<const typename F::State&>(*found->second),
                       ShardFinder{shards, path, parameter, *shard});
      });
    }
  return shards;
}

void check_optimizer_state_dict(Optimizer& optimizer, const Value& state, const ShardOf& shard_of) {
  if (dynamic_cast<const Stateful*>(&optimizer)) return check_whole(state);
  if (is_known(optimizer)) {
    for (auto& [slot, fresh, own] : plan_known(optimizer, state, shard_of)) own(*fresh, slot, true);
  } else {
    check_whole(check_unknown(optimizer, state));
  }
}

void load_optimizer_state_dict(Optimizer& optimizer, const Value& state, const ShardOf& shard_of) {
  at::NoGradGuard no_grad;
  if (auto* stateful = dynamic_cast<Stateful*>(&optimizer)) {
    stateful->load_state_dict(in_memory(state));
  } else if (is_known(optimizer)) {
    load_known(optimizer, state, shard_of);
  } else if (const auto& archive = check_unknown(optimizer, state); archive.defined()) {
    load_optimizer_archive(optimizer, in_memory(archive));
  }
}
}  // namespace fabric
