#include "launcher/run/program.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <fabric/base/env_reader.h>

#include "fabric/base/files_internal.h"

namespace fabric::run {
namespace {

bool is_executable_file(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0;
}

// A relative path must stay right in --workdir.
std::string absolute(const std::string& path) {
  if (path.starts_with("/")) return path;
  char folder[4096];
  return getcwd(folder, sizeof folder) ? std::string(folder) + "/" + path : path;
}

std::string search(const std::string& name, const std::string& search_path) {
  std::istringstream folders(search_path);
  std::string unusable;
  for (std::string folder; std::getline(folders, folder, ':');) {
    auto path = (folder.empty() ? "." : folder) + "/" + name;
    if (is_executable_file(path)) return absolute(path);
    if (unusable.empty() && access(path.c_str(), F_OK) == 0) unusable = path;
  }
  return unusable;
}

[[noreturn]] void fail_missing(const std::string& name) {
  auto hint = name.find('/') == std::string::npos && access(name.c_str(), F_OK) == 0
                  ? "; there is a file of this name here: write ./" + name
                  : "";
  throw ProgramError(127, "there is no program '" + name + "'" + hint);
}

void check(const std::string& path, const std::string& name) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) fail_missing(name);
    throw ProgramError(126, "cannot run " + path + ": " + std::strerror(errno));
  }
  if (S_ISDIR(info.st_mode)) throw ProgramError(126, "cannot run " + path + ": it is a folder");
  if (access(path.c_str(), X_OK) != 0)
    throw ProgramError(126, "cannot run " + path + ": " + std::strerror(errno) + "; see chmod +x");
}

std::string find_file(const std::string& name, const std::string& search_path) {
  std::string path = name;
  if (name.find('/') == std::string::npos) path = search(name, search_path);
  if (path.empty()) fail_missing(name);
  path = absolute(path);
  check(path, name);
  return path;
}

}  // namespace

Program find_program(const Options& options, const std::string& search_path) {
  const auto& command = options.command;
  bool is_script = !options.no_python && !options.is_module && command[0].ends_with(".py");
  if (!is_script && !options.is_module) return {find_file(command[0], search_path), command};
  if (is_script && access(command[0].c_str(), R_OK) != 0) {
    if (errno == ENOENT) fail_missing(command[0]);
    throw ProgramError(126, "cannot read " + command[0] + ": " + std::strerror(errno));
  }
  auto chosen = process_env()->get("PYTHON_EXEC");
  std::string python = chosen ? *chosen : search("python3", search_path).empty() ? "python" : "python3";
  Program program{find_file(python, search_path), {python, "-u"}};
  if (options.is_module) program.arguments.push_back("-m");
  program.arguments.insert(program.arguments.end(), command.begin(), command.end());
  if (is_script && !options.workdir.empty()) program.arguments[2] = absolute(command[0]);
  return program;
}

std::string exec_problem(const std::string& path, int error) {
  std::string text = std::strerror(error);
  if (error == ENOEXEC) return text + " (it is made for another kind of machine, or a script without a #! line)";
  if (error != ENOENT) return text;
  auto line = first_line(path);
  if (line.starts_with("#!")) return "its interpreter '" + line.substr(2) + "' is missing";
  return "its loader is missing: it is made for another system";
}

}  // namespace fabric::run
