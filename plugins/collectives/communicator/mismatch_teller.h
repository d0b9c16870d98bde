#pragma once

#include <string>

#include <fabric/base/error.h>

#include "plugins/collectives/communicator/collective_call.h"
#include "plugins/collectives/mismatch_lines.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {

/// What a communicator's ranks do that met with different operations: they tell one another which. Ranks that came
/// checked (check.cpp) make the same exchange, and would wait there for those that did not.
class MismatchTeller {
 public:
  /// Throws MismatchError. In step again, the ranks can go on.
  [[noreturn]] void tell(Communicator& communicator, const CollectiveCall& call) {
    const int rank = communicator.rank();
    if (telling_)
      throw CollectiveError("rank " + std::to_string(rank) + ": " + call.name() +
                            " cannot run, since the ranks called different operations");
    telling_ = true;
    try {
      throw_exchanged_lines(
          rank, communicator.size(), within_task(call.text()), "",
          [&](const void* line, void* lines, std::int64_t bytes) { communicator.all_gather(line, lines, bytes); });
    } catch (...) {
      telling_ = false;
      throw;
    }
  }

 private:
  bool telling_ = false;
};

}  // namespace fabric::collectives
