#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "fabric/base/processors/container_limits_internal.h"

namespace fabric::container {
namespace {

namespace fs = std::filesystem;

std::optional<double> number(const std::string& text) {
  std::istringstream in(text);
  double value = 0;
  if (!(in >> value) || !(value > 0)) return std::nullopt;
  return value;
}

std::vector<std::string> words_of(const fs::path& path) {
  std::ifstream file(path);
  std::vector<std::string> words;
  for (std::string word; words.size() < 2 && file >> word;) words.push_back(word);
  return words;
}

/// The group's path by controller; "" is that of version 2. Lines look like `4:cpu,cpuacct:/path`.
std::string group_of(const fs::path& root, const std::string& controller) {
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = ',' + line.substr(first + 1, second - first - 1) + ",";
    if (controller.empty() ? names == ",," : names.find(',' + controller + ",") != std::string::npos)
      return line.substr(second + 1);
  }
  return "/";
}

/// The folders of a group and of all above it. In a container the path may be the host's, of which only the root is
/// there: that of the container itself.
std::vector<fs::path> folders(const fs::path& mount, const std::string& group) {
  std::vector<fs::path> all;
  for (fs::path path = fs::path(group).relative_path(); !path.empty(); path = path.parent_path())
    all.push_back(mount / path);
  all.push_back(mount);
  return all;
}

/// Where version 1 keeps a controller: some systems name the folder after several.
fs::path mount_of(const fs::path& root, const std::string& controller) {
  for (const char* both : {"cpu,cpuacct", "cpuacct,cpu"})
    if (controller == "cpu" && fs::exists(root / "sys/fs/cgroup" / both)) return root / "sys/fs/cgroup" / both;
  return root / "sys/fs/cgroup" / controller;
}

void lower(std::optional<double>& least, std::optional<double> value) {
  if (value && (!least || *value < *least)) least = value;
}

}  // namespace

std::optional<double> processor_quota(const fs::path& root) {
  std::optional<double> least;
  for (const auto& folder : folders(root / "sys/fs/cgroup", group_of(root, ""))) {
    const auto words = words_of(folder / "cpu.max");  // "150000 100000" or "max 100000"
    if (words.size() < 2) continue;
    auto quota = number(words[0]), period = number(words[1]);
    if (quota && period) lower(least, *quota / *period);
  }
  for (const auto& folder : folders(mount_of(root, "cpu"), group_of(root, "cpu"))) {
    const auto quota = words_of(folder / "cpu.cfs_quota_us"), period = words_of(folder / "cpu.cfs_period_us");
    if (quota.empty() || period.empty()) continue;
    auto microseconds = number(quota[0]), of = number(period[0]);  // -1: none
    if (microseconds && of) lower(least, *microseconds / *of);
  }
  return least;
}

std::optional<int> processors(const fs::path& root) {
  auto quota = processor_quota(root);
  if (!quota) return std::nullopt;
  return std::max(1, static_cast<int>(std::ceil(std::min(*quota, 1e6) - 1e-9)));
}

std::optional<std::int64_t> memory_limit(const fs::path& root) {
  std::optional<double> least;
  for (const auto& folder : folders(root / "sys/fs/cgroup", group_of(root, "")))
    for (const auto& word : words_of(folder / "memory.max")) lower(least, number(word));
  for (const auto& folder : folders(mount_of(root, "memory"), group_of(root, "memory")))
    for (const auto& word : words_of(folder / "memory.limit_in_bytes")) lower(least, number(word));
  // Version 1 says "none" by a number that no machine has.
  if (!least || *least > 1e18) return std::nullopt;
  return static_cast<std::int64_t>(*least);
}

}  // namespace fabric::container
