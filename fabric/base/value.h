#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include <fabric/base/tree.h>

namespace fabric {

/// Nested data with tensors at its leaves: what collectives take, what `state_dict` returns and checkpoints hold.
/// Copying a Value shares its tensors.
using Value = BasicTree<at::Tensor>;

/// The same tree without tensors; throws MisuseError naming the path of the first tensor.
FABRIC_API Tree to_tree(const Value& value);
FABRIC_API Value to_value(const Tree& tree);
/// A readable one-line print, tensors as `Tensor[2, 3] Float`.
FABRIC_API std::string to_string(const Value& value);

/// Replaces every tensor of a nested value, in place. `change` gets the tensor and the dotted path that leads to it.
template <class Change>
void for_each_leaf_tensor(Value& value, Change&& change, const std::string& path = "") {
  auto below = [&](const std::string& key) { return path.empty() ? key : path + "." + key; };
  if (value.is<at::Tensor>()) {
    change(value.as<at::Tensor>(), path);
  } else if (value.is_list()) {
    auto& list = value.as_list();
    for (std::size_t i = 0; i < list.size(); ++i) for_each_leaf_tensor(list[i], change, below(std::to_string(i)));
  } else if (value.is_map()) {
    for (auto& [key, item] : value.as_map()) for_each_leaf_tensor(item, change, below(key));
  }
}

}  // namespace fabric
