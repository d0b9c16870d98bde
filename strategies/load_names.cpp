// Names are settled before anything is looked for: the checkpoint is renamed as a whole, and what the filter leaves out
// is given to the module as tensors that keep what is there. So strict and partial loads, tied weights and parameters
// that are spread over ranks go the way that they go without options.
#include "strategies/load_names.h"

#include <fabric/base/error.h>
#include <fabric/base/log.h>

namespace fabric {
namespace {

using Originals = std::unordered_map<std::string, std::string>;
using Filter = std::function<bool(const std::string& name)>;

/// The content of a tensor that is not to be restored.
struct Kept : StoredTensor {
  void read(at::IntArrayRef, at::Tensor&) const override {}
};

template <class Visit>
void for_each_entry(const Value& value, const std::string& path, Visit&& visit) {
  if (!value.is_map()) return visit(path, value);
  for (const auto& [key, item] : value.as_map()) for_each_entry(item, path.empty() ? key : path + "." + key, visit);
}

Value chosen(const Value& saved, const StatePart& own, const std::string& prefix, const Filter& filter) {
  if (!saved.is_map()) return saved;
  Value::Map out;
  for_each_entry(saved, "", [&](const std::string& name, const Value& item) {
    if (!item.is<at::Tensor>() || filter(prefix + name)) out.append(name, item);
  });
  const auto kept = std::make_shared<Kept>();
  for_each_entry(own.values, "", [&](const std::string& name, const Value& item) {
    if (!item.is<at::Tensor>() || filter(prefix + name)) return;
    const auto& tensor = item.as<at::Tensor>();
    const auto shard = own.shards.find(name);
    auto shape = shard == own.shards.end() ? tensor.sizes() : at::IntArrayRef(shard->second.global_shape);
    out.append(name, make_stored_tensor(shape, tensor.scalar_type(), kept));
  });
  return out;
}

template <class Work>
void naming_originals(const Originals& originals, const std::string& prefix, Work&& work) {
  try {
    work();
  } catch (const CheckpointKeyError& error) {
    throw CheckpointKeyError(with_original_names(error.what(), prefix, originals));
  }
}

std::string first_name(Value value) {
  std::string first;
  for_each_leaf_tensor(value, [&](at::Tensor&, const std::string& name) {
    if (first.empty()) first = name;
  });
  return first;
}

}  // namespace

Value NamedLoad::rename(Value checkpoint, const std::filesystem::path& path) {
  if (options_.rename.empty()) return checkpoint;
  Renamer rename(options_.rename);
  const std::string example = first_name(checkpoint);
  auto renamed = rename_tensors(std::move(checkpoint), rename);
  originals_ = std::move(renamed.originals);
  for (const auto& pattern : rename.unused())
    log::rank_zero_warn("the rename rule '" + pattern + "' fits no tensor of '" + path.string() +
                        "'; names are whole paths, as '" + example + "' is");
  return std::move(renamed.value);
}

StateAccess NamedLoad::access(const StateAccess& base, const State* state) const {
  std::unordered_map<const torch::nn::Module*, std::string> prefixes;
  if (state)
    for (const auto& [key, entry] : *state)
      if (entry.module()) prefixes.emplace(entry.module(), key + ".");
  auto with = [this, base, prefixes](torch::nn::Module& module, const Value& saved, auto&& use) {
    const auto found = prefixes.find(&module);
    const std::string prefix = found == prefixes.end() ? "" : found->second;
    naming_originals(originals_, prefix, [&] {
      use(options_.filter ? chosen(saved, base.get_module(module), prefix, options_.filter) : saved);
    });
  };
  StateAccess out = base;
  if (base.check_module)
    out.check_module = [base, with](torch::nn::Module& module, const Value& saved) {
      with(module, saved, [&](const Value& value) { base.check_module(module, value); });
    };
  out.set_module = [base, with](torch::nn::Module& module, const Value& saved, bool strict) {
    with(module, saved, [&](const Value& value) { base.set_module(module, value, strict); });
  };
  return out;
}

}  // namespace fabric
