#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include <fabric/base/value.h>

#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric::checkpoint {

/// A nested value taken apart: its tensors under unique names, and everything else as a tree that JSON can hold.
/// In that tree plain values stand for themselves; maps of one key that starts with `$` stand for the rest:
/// {"$tensor": name} (null: undefined), {"$complex": name} (stored as pairs of reals), {"$bytes": hex} (a
/// string that is not UTF-8), {"$map": {…}} and {"$pairs": [[key, value], …]} (maps whose keys need it).
struct Structure {
  Tree tree;
  std::vector<NamedTensor> tensors;
};

/// Tensors are named by the dotted path to them; where two paths give one name, the later gets a suffix.
Structure flatten(const Value& value);

/// The reverse. Throws CheckpointCorrupt when the tree names a tensor that is not there, or does not name one that is.
Value put_together(const Tree& tree, const std::unordered_map<std::string, at::Tensor>& tensors);

}  // namespace fabric::checkpoint
