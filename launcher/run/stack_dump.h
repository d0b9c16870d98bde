#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>

namespace fabric::run {

/// Where the threads of a process are: by gdb or eu-stack if one is on the search path and answers within the limit,
/// else what the kernel says of each thread (state, wait channel, system call). Never throws.
std::string dump_stacks(pid_t pid, std::chrono::milliseconds limit);

}  // namespace fabric::run
