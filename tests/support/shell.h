#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <string>

/// How a program ended (128: by a signal), and what it wrote to stdout and stderr.
struct ShellResult {
  int code;
  std::string output;
};

/// A path as one word of a command, whatever blanks it has.
inline std::string shell_word(const std::filesystem::path& path) { return "'" + path.string() + "'"; }

inline ShellResult run_shell(const std::filesystem::path& program, const std::string& arguments) {
  FILE* pipe = popen((shell_word(program) + " " + arguments + " 2>&1").c_str(), "r");
  std::string output;
  char buffer[512];
  for (std::size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, output};
}
