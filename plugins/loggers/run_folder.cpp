#include "plugins/loggers/run_folder.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

namespace fabric {
namespace {

// The N of "version_N"; -1 for other names.
long version_number(const std::string& folder) {
  const std::string prefix = "version_";
  if (folder.rfind(prefix, 0) != 0) return -1;
  long number = -1;
  const char* end = folder.data() + folder.size();
  auto [stop, error] = std::from_chars(folder.data() + prefix.size(), end, number);
  return error == std::errc() && stop == end && number >= 0 ? number : -1;
}

}  // namespace

std::string expanded_path(const std::string& path, const EnvReader& env) {
  std::string out;
  std::size_t at = 0;
  if (path == "~" || path.rfind("~/", 0) == 0) out = env.get_or("HOME", "~"), at = 1;
  auto is_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  while (at < path.size()) {
    bool braces = path.compare(at, 2, "${") == 0;
    std::size_t begin = at + (braces ? 2 : 1), end = begin;
    while (path[at] == '$' && end < path.size() && is_name(path[end])) ++end;
    bool whole = end > begin && (!braces || (end < path.size() && path[end] == '}'));
    if (whole) {
      std::size_t next = braces ? end + 1 : end;
      out += env.get_or(path.substr(begin, end - begin), path.substr(at, next - at));
      at = next;
    } else {
      out += path[at++];
    }
  }
  return out;
}

RunFolder::RunFolder(std::string root, std::string name, std::string version)
    : root_(std::move(root)), name_(std::move(name)), automatic_(version.empty()), version_(std::move(version)) {
  if (auto why = why_not_local(root_); !why.empty()) throw ConfigError("the log folder " + why);
}

std::filesystem::path RunFolder::parent() const {
  return name_.empty() ? std::filesystem::path(root_) : std::filesystem::path(root_) / name_;
}

const std::string& RunFolder::version() const {
  if (!version_.empty()) return version_;
  long highest = -1;
  std::error_code error;
  for (std::filesystem::directory_iterator it(parent(), error), end; !error && it != end; it.increment(error))
    if (std::error_code ignored; it->is_directory(ignored))
      highest = std::max(highest, version_number(it->path().filename().string()));
  return version_ = "version_" + std::to_string(highest + 1);
}

std::filesystem::path RunFolder::path() const { return parent() / version(); }

void RunFolder::create(const std::string& sub_dir) {
  std::error_code error;
  if (automatic_ && version_.empty()) {
    std::filesystem::create_directories(parent(), error);
    // create_directory is false when the folder exists: then another run was faster, and the next number is tried.
    while (!error && !std::filesystem::create_directory(path(), error) && !error) version_.clear();
  }
  auto whole = sub_dir.empty() ? path() : path() / sub_dir;
  if (!error) std::filesystem::create_directories(whole, error);
  if (error) throw Error("cannot make the log folder " + whole.string() + ": " + error.message());
}

}  // namespace fabric
