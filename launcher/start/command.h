#pragma once

#include <map>
#include <string>
#include <vector>

namespace fabric {

/// What execve needs to run a program.
struct Command {
  std::string path;
  std::vector<std::string> arguments;  // [0] is the program's name
  std::map<std::string, std::string> variables;
};

/// This program's own command line, byte by byte, and its variables as they are now. Throws LaunchError.
Command own_command();
/// The words as exec takes them, the null at the end included; good as long as they are.
std::vector<char*> exec_pointers(const std::vector<std::string>& words);

}  // namespace fabric
