#pragma once

#include <string>

#include "plugins/collectives/group.h"

namespace fabric::collectives {

/// What one rank is about to do, as far as the ranks must agree on it.
struct Call {
  const char* operation;
  const at::Tensor* tensor = nullptr;
  int op = -1;                         // ReduceOp
  int root = -1;                       // source or destination
  bool any_shape = false;              // only the number of dimensions and the type must agree
  const std::string* label = nullptr;  // whatever else must agree
};

/// Compares `call` over the ranks: throws MisuseError or CollectiveError when the group cannot be used, and, when the
/// group's check is on, MismatchError on every rank when they disagree. Returns after all ranks came, if it checked.
void verify(Group& group, const Call& call);

/// Comes to the check in which the other ranks of the group wait, with an operation of another group of which `what`
/// tells: theirs cannot run, since this rank will not come to it. Throws MismatchError, as theirs do.
[[noreturn]] void come_to_check(Group& group, const std::string& what);

/// "all_reduce(sum) of Float [2, 3]".
std::string describe(const Call& call);

/// Throws MisuseError for an undefined or sparse tensor.
void require_dense(const char* operation, const at::Tensor& tensor);
void require_rank(const char* operation, const char* what, int rank, int size);

}  // namespace fabric::collectives
