#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <fabric/base/value.h>

#include "plugins/checkpoint_io/dcp/dcp_metadata.h"

namespace fabric::checkpoint {

/// Puts flat entries back into the dicts and lists that they came from.
class DcpTree {
 public:
  /// Throws CheckpointCorrupt where the entry's path contradicts another one's.
  void add(const DcpEntry& entry, Value value);
  /// The whole. Entries of lists that were left out close up.
  Value take();

 private:
  struct Branch {
    Value leaf;
    bool is_leaf = false, is_list = false;
    std::vector<std::pair<DcpStep, std::unique_ptr<Branch>>> children;
    std::unordered_map<std::string, Branch*> by_key;
  };
  static Branch& child(Branch& of, const DcpStep& step, const std::string& name);
  static Value value_of(Branch& branch);
  Branch root_;
};

}  // namespace fabric::checkpoint
