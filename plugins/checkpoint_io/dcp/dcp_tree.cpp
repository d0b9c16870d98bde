#include "plugins/checkpoint_io/dcp/dcp_tree.h"

#include <algorithm>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/names.h"

namespace fabric::checkpoint {

void DcpTree::add(const DcpEntry& entry, Value value) {
  Branch* at = &root_;
  for (const auto& step : entry.path) at = &child(*at, step, entry.name);
  if (at->is_leaf || !at->children.empty())
    throw CheckpointCorrupt("the path of '" + entry.name.substr(0, kShownName) +
                            "' in its .metadata is another's, too");
  at->is_leaf = true;
  at->leaf = std::move(value);
}

Value DcpTree::take() { return value_of(root_); }

DcpTree::Branch& DcpTree::child(Branch& of, const DcpStep& step, const std::string& name) {
  const bool is_list = step.index.has_value();
  if (of.is_leaf || (!of.children.empty() && of.is_list != is_list))
    throw CheckpointCorrupt("the path of '" + name.substr(0, kShownName) +
                            "' in its .metadata leads through something else");
  of.is_list = is_list;
  auto [known, is_new] = of.by_key.emplace(is_list ? std::to_string(*step.index) : step.key, nullptr);
  if (is_new) {
    of.children.emplace_back(step, std::make_unique<Branch>());
    known->second = of.children.back().second.get();
  }
  return *known->second;
}

Value DcpTree::value_of(Branch& branch) {
  if (branch.is_leaf) return std::move(branch.leaf);
  if (branch.is_list) {
    // A list is as long as it has entries, whatever numbers they bear.
    std::sort(branch.children.begin(), branch.children.end(),
              [](const auto& a, const auto& b) { return *a.first.index < *b.first.index; });
    Value::List out;
    for (auto& [step, inner] : branch.children) out.push_back(value_of(*inner));
    return out;
  }
  Value::Map out;
  for (auto& [step, inner] : branch.children) out.append(step.key, value_of(*inner));
  return out;
}

}  // namespace fabric::checkpoint
