#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/state/state.h>

#include "fabric/state/checked_tensor_internal.h"

namespace fabric {
namespace {

struct Copy {
  at::Tensor target;
  at::Tensor source;
  std::vector<std::int64_t> offsets;
};
struct LoadPlan {
  std::vector<Copy> copies;
  std::vector<std::string> complaints;
  std::size_t misfits = 0;    // the complaints that come first: tensors of another shape or kind
  bool fits_nothing = false;  // both sides have tensors, and not one name in common
  std::string unexpected;     // the first of those complaints
};

// As Module::named_parameters and named_buffers, without the maps of all of them that these make.
template <class Visit>
void for_each_tensor_of(const torch::nn::Module& module, Visit&& visit) {
  auto visit_all = [&](const std::string& prefix, const auto& tensors) {
    for (const auto& item : tensors)
      if (item.value().defined()) visit(prefix.empty() ? item.key() : prefix + "." + item.key(), item.value());
  };
  using Apply = torch::nn::Module::ConstNamedModuleApplyFunction;
  module.apply(Apply([&](const std::string& prefix, const torch::nn::Module& part) {
    visit_all(prefix, part.named_parameters(/*recurse=*/false));
  }));
  module.apply(Apply([&](const std::string& prefix, const torch::nn::Module& part) {
    visit_all(prefix, part.named_buffers(/*recurse=*/false));
  }));
}

// As detach(), whose way through the dispatcher costs more than all else that a state needs for a tensor. What is more
// than a plain tensor has a detach of its own: a part of a sharded parameter may refuse it.
at::Tensor detached(const at::Tensor& tensor) {
  constexpr auto kBackend = c10::BackendComponent::CPUBit;
  static const c10::DispatchKeySet plain = c10::DispatchKeySet(c10::DispatchKey::CPU) |
                                           c10::getAutocastRelatedKeySetFromBackend(kBackend) |
                                           c10::getAutogradRelatedKeySetFromBackend(kBackend);
  return tensor.key_set() == plain ? tensor.tensor_data() : tensor.detach();
}

struct Saved {
  std::unordered_map<std::string, at::Tensor> tensors;
  std::vector<std::string> order;
  std::vector<std::string> complaints;
};

void flatten(const Value& value, const std::string& path, Saved& saved) {
  if (value.is_map()) {
    for (const auto& [key, item] : value.as_map()) flatten(item, path.empty() ? key : path + "." + key, saved);
  } else if (!value.is<at::Tensor>() || !value.as<at::Tensor>().defined()) {
    saved.complaints.push_back("unexpected '" + path + "' (" + value.kind() + ")");
  } else if (saved.tensors.emplace(path, value.as<at::Tensor>()).second) {
    saved.order.push_back(path);
  } else {
    saved.complaints.push_back("'" + path + "' twice");
  }
}

std::string shape_text(const at::Tensor& tensor, at::IntArrayRef shape) {
  std::string out = "[";
  for (auto size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "] " + c10::toString(tensor.scalar_type());
}

bool loses_meaning(const at::Tensor& source, const at::Tensor& target) {
  return (source.is_complex() && !target.is_complex()) ||
         (source.is_floating_point() && !target.is_floating_point() && !target.is_complex());
}

LoadPlan plan_load(const torch::nn::Module& module, const Value& state, const ShardOf& shard_of) {
  if (!state.is_map()) throw CheckpointKeyError(std::string("a module's state must be a map, not ") + state.kind());
  Saved saved;
  flatten(state, "", saved);
  LoadPlan plan;
  std::unordered_set<const void*> filled;
  std::vector<std::pair<std::string, const void*>> absent;
  std::unordered_set<std::string> known;
  for_each_tensor_of(module, [&](const std::string& name, const at::Tensor& target) {
    known.insert(name);
    auto found = saved.tensors.find(name);
    const void* identity = target.unsafeGetTensorImpl();
    if (found == saved.tensors.end()) {
      absent.emplace_back(name, identity);
      return;
    }
    filled.insert(identity);
    const at::Tensor& source = found->second;
    auto shard = shard_of ? shard_of(target) : std::nullopt;
    auto whole = shard ? at::IntArrayRef(shard->global_shape) : target.sizes();
    if (source.sizes() != whole || loses_meaning(source, target))
      plan.complaints.push_back("'" + name + "' is " + shape_text(source, source.sizes()) + " in the checkpoint, " +
                                shape_text(target, whole) + " in the module");
    else if (shard)
      for (auto& [box, offsets] : local_boxes(target, *shard))
        plan.copies.push_back({std::move(box), source, std::move(offsets)});
    else
      plan.copies.push_back({target, source, std::vector<std::int64_t>(target.sizes().size(), 0)});
  });
  plan.misfits = plan.complaints.size();
  for (const auto& [name, identity] : absent)
    if (!filled.contains(identity)) plan.complaints.push_back("missing '" + name + "'");
  for (const auto& name : saved.order)
    if (!known.contains(name)) {
      plan.complaints.push_back("unexpected '" + name + "'");
      if (plan.unexpected.empty()) plan.unexpected = plan.complaints.back();
    }
  plan.fits_nothing = filled.empty() && !known.empty() && !saved.order.empty();
  plan.complaints.insert(plan.complaints.end(), saved.complaints.begin(), saved.complaints.end());
  return plan;
}

void require_fit(const LoadPlan& plan) {
  if (plan.complaints.empty()) return;
  std::string text = "the saved state does not fit the module:";
  for (const auto& complaint : plan.complaints) text += "\n  " + complaint;
  throw CheckpointKeyError(text);
}

void require_undamaged(const LoadPlan& plan) {
  for (const auto& [target, source, offsets] : plan.copies) check_box(source, offsets, target.sizes());
}

}  // namespace

Value module_state_dict(const torch::nn::Module& module) {
  Value::Map out;
  for_each_tensor_of(module,
                     [&](const std::string& name, const at::Tensor& tensor) { out.append(name, detached(tensor)); });
  return out;
}

StatePart module_part(const torch::nn::Module& module, const ShardOf& shard_of) {
  StatePart out;
  Value::Map values;
  for_each_tensor_of(module, [&](const std::string& name, const at::Tensor& tensor) {
    if (auto shard = shard_of ? shard_of(tensor) : std::nullopt) out.shards.emplace(name, std::move(*shard));
    values.append(name, detached(tensor));
  });
  out.values = std::move(values);
  return out;
}

std::map<std::string, Shard> module_shards(const torch::nn::Module& module, const ShardOf& shard_of) {
  return shard_of ? module_part(module, shard_of).shards : std::map<std::string, Shard>();
}

void check_module_state_dict(torch::nn::Module& module, const Value& state, const ShardOf& shard_of) {
  LoadPlan plan = plan_load(module, state, shard_of);
  require_fit(plan);
  require_undamaged(plan);
}

void load_module_state_dict(torch::nn::Module& module, const Value& state, bool strict, const ShardOf& shard_of) {
  LoadPlan plan = plan_load(module, state, shard_of);
  if (strict) require_fit(plan);
  // Keys that one side lacks are what a partial load is for; this is rarely meant.
  if (plan.misfits > 0)
    log::rank_zero_warn("a partial load left " + std::to_string(plan.misfits) +
                        " tensor(s) as they are: " + plan.complaints.front() + (plan.misfits > 1 ? ", …" : ""));
  if (plan.fits_nothing)
    log::rank_zero_warn("a partial load restored nothing: no name in the checkpoint is one of the module's (" +
                        plan.complaints.front() + "; " + plan.unexpected + "). LoadOptions::rename changes names");
  require_undamaged(plan);
  at::NoGradGuard no_grad;
  for (auto& [target, source, offsets] : plan.copies) read_box(source, offsets, target);
}

}  // namespace fabric
