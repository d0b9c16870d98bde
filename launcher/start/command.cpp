#include "launcher/start/command.h"

#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <fstream>
#include <iterator>

#include <fabric/base/error.h>

namespace fabric {
namespace {

constexpr const char* kSelf = "/proc/self/exe";

// The real path keeps the program's name in process lists; after a rebuild it names another file, and only the link is
// left.
std::string program_path() {
  char path[PATH_MAX];
  ssize_t size = readlink(kSelf, path, sizeof path - 1);
  if (size <= 0)
    throw LaunchError("cannot read /proc/self/exe, which is needed to start the other ranks; is /proc mounted?");
  path[size] = 0;
  struct stat named, self;
  bool same =
      stat(path, &named) == 0 && stat(kSelf, &self) == 0 && named.st_dev == self.st_dev && named.st_ino == self.st_ino;
  return same ? path : kSelf;
}

}  // namespace

Command own_command() {
  Command command;
  command.path = program_path();
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  for (std::size_t begin = 0; begin < bytes.size();) {
    auto end = std::min(bytes.find('\0', begin), bytes.size());
    command.arguments.push_back(bytes.substr(begin, end - begin));
    begin = end + 1;
  }
  if (command.arguments.empty())
    throw LaunchError("cannot read /proc/self/cmdline, which is needed to start the other ranks");
  for (char** entry = environ; entry && *entry; ++entry)
    if (const char* equal = std::strchr(*entry, '='))
      command.variables.emplace(std::string(*entry, equal - *entry), equal + 1);
  return command;
}

std::vector<char*> exec_pointers(const std::vector<std::string>& words) {
  std::vector<char*> all;
  for (const auto& word : words) all.push_back(const_cast<char*>(word.c_str()));
  all.push_back(nullptr);
  return all;
}

}  // namespace fabric
