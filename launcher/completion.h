#pragma once

#include <string>
#include <vector>

namespace fabric {

/// `fabric completion bash|zsh|fish`: prints a script that completes commands and flags. Returns the exit code.
int print_completion(const std::vector<std::string>& words);

}  // namespace fabric
