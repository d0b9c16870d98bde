#pragma once

#include <chrono>

#include <fabric/plugins/collectives/process_group.h>

namespace fabric::ddp {

/// Called in a catch block: throws what was caught, LibTorch's failures of communication translated to TimeoutError or
/// CollectiveError. Other exceptions (of the user's own code, for instance) pass unchanged.
[[noreturn]] void throw_collective_failure(const ProcessGroup& group, const char* operation,
                                           std::chrono::steady_clock::time_point begin);

}  // namespace fabric::ddp
