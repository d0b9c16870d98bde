#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/start/child.h"

namespace fabric {

/// How a call of launch_function ended: with bytes, or with the text of an error.
struct CallOutcome {
  bool ok = true;
  std::string bytes;
};

/// The launch_function calls of this process, in order. A re-executed child runs main from the start, so it is given
/// the outcomes of the calls that its parent has behind it, and repeats them without starting anything.
class CallHistory {
 public:
  /// Reads what the parent left, the first time.
  static CallHistory& of_this_process();

  /// The outcome of the earlier call that this call repeats, if it does.
  std::optional<CallOutcome> repeat();
  /// In a spawned child, once: where the result of its function goes.
  Descriptor take_result();
  void record(CallOutcome outcome);
  /// Adds to a child's variables and kept descriptors what its history needs; `result` is -1 for popen. The descriptor
  /// returned must live until the child has started.
  Descriptor hand_over(Command& command, ChildOptions& options, int result) const;

 private:
  CallHistory();
  std::vector<CallOutcome> outcomes_;
  std::size_t repeated_ = 0;
  Descriptor result_;
};

}  // namespace fabric
