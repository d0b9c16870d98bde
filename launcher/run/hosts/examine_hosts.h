#pragma once

#include <string>
#include <vector>

namespace fabric::run {

/// `fabric doctor --hosts …`: tries each host as `fabric run --hosts` would, and prints a table of what it found.
/// Returns 0 when all of them would do. Throws ConfigError.
int examine_hosts(const std::vector<std::string>& words);

}  // namespace fabric::run
