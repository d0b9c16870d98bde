#include "plugins/collectives/communicator/collective_call.h"

namespace fabric::collectives {
namespace {

const char* name_of_op(Communicator::Op op) {
  static constexpr const char* kNames[] = {"sum",         "mean",       "product",     "min", "max",
                                           "bitwise and", "bitwise or", "bitwise xor", "?",   "?"};
  return kNames[op];
}

}  // namespace

const char* CollectiveCall::name() const {
  static constexpr const char* kNames[] = {"duplicating the group",
                                           "barrier",
                                           "all_reduce",
                                           "reduce",
                                           "reduce_scatter",
                                           "broadcast",
                                           "all_gather",
                                           "gather",
                                           "scatter",
                                           "all_to_all"};
  return kNames[static_cast<int>(kind)];
}

std::string CollectiveCall::text() const {
  std::string text = name();
  if (op != Communicator::Op::UNUSED)
    text += std::string("(") + name_of_op(op) + ") of " +
            std::to_string(bytes / static_cast<std::int64_t>(c10::elementSize(type))) + " " + c10::toString(type) +
            " items";
  else if (bytes > 0)
    text += " of " + std::to_string(bytes) + " bytes";
  if (root >= 0) text += ", root " + std::to_string(root);
  return text;
}

}  // namespace fabric::collectives
