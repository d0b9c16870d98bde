#pragma once

#include "plugins/collectives/group.h"

namespace fabric::collectives {

/// A tensor in the form in which the group's backend can reduce it.
struct Reducible {
  at::Tensor buffer;  // contiguous; of a type and on a device that the backend knows
  c10d::ReduceOp::RedOpType op = c10d::ReduceOp::SUM;
  bool divide = false;  // by the group's size, afterwards

  /// Brings the reduced buffer into `target`, which has the original tensor's shape and type.
  void store_in(at::Tensor& target, int size) const;
};

/// Shares the tensor's memory where it can. Throws MisuseError for an operation that the type does not have.
Reducible make_reducible(const Group& group, const at::Tensor& tensor, ReduceOp op, const char* operation);

}  // namespace fabric::collectives
