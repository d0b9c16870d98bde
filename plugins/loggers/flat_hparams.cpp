#include "plugins/loggers/flat_hparams.h"

#include <algorithm>

#include <fabric/base/tree_io.h>

namespace fabric {
namespace {

void flatten(const Tree& tree, const std::string& path, std::vector<std::pair<std::string, Tree>>& out) {
  auto below = [&](const std::string& key) { return path.empty() ? key : path + "/" + key; };
  if (tree.is_map() && !tree.as_map().empty()) {
    for (const auto& [key, value] : tree.as_map()) flatten(value, below(key), out);
    return;
  }
  if (tree.is_list()) {
    const auto& list = tree.as_list();
    // Only lists that hold maps are taken apart: [64, 64] is one setting.
    if (std::any_of(list.begin(), list.end(), [](const Tree& item) { return item.is_map(); })) {
      for (std::size_t i = 0; i < list.size(); ++i) flatten(list[i], below(std::to_string(i)), out);
      return;
    }
  }
  out.emplace_back(path, tree.is_list() || tree.is_map() ? Tree(write_json(tree)) : tree);
}

}  // namespace

std::vector<std::pair<std::string, Tree>> flat_hparams(const Tree& params) {
  std::vector<std::pair<std::string, Tree>> out;
  if (params.is_null() || (params.is_map() && params.as_map().empty())) return out;
  flatten(params, params.is_map() ? "" : "value", out);
  return out;
}

}  // namespace fabric
