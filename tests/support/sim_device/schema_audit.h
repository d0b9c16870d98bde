#pragma once

#include <string>
#include <vector>

namespace sim {

/// Operators whose CPU kernels write arguments that their schemas do not mark as written.
struct SchemaAudit {
  int operators = 0;                    // with a CPU kernel
  int ran = 0;                          // of them, at least once
  std::vector<std::string> unadmitted;  // "aten::native_batch_norm running_mean", sorted
};

/// Runs every operator that has a CPU kernel with arguments made after its schema, and compares the arguments before
/// and after. In processes of their own, since some operators do not survive such arguments.
SchemaAudit audit_schemas();

}  // namespace sim
