#pragma once

#include <string>
#include <vector>

#include <fabric/base/error.h>

#include "launcher/run/options.h"

namespace fabric::run {

/// A program that cannot be run; `code` is 127 when it is missing and 126 when it may not or cannot be executed.
class ProgramError : public LaunchError {
 public:
  ProgramError(int code, const std::string& text) : LaunchError(text), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

struct Program {
  std::string path;
  std::vector<std::string> arguments;  // [0] is the program's name
};

/// Finds what the command names: as a shell does, but a file that ends in .py is given to Python, and so is a module.
/// Throws ProgramError.
Program find_program(const Options& options, const std::string& search_path);

/// Why a file that is there could not be executed, from errno of execve.
std::string exec_problem(const std::string& path, int error);

}  // namespace fabric::run
