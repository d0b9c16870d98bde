#pragma once

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace control_group {

inline bool write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  return file.good();
}

/// A control group with limits below this process's own, of version 1 or 2, whatever may be made here; false where none
/// may. Goes with the object.
class ControlGroup {
 public:
  /// Files of the group, and what to write into them; the first one is the limit.
  using Settings = std::vector<std::pair<std::string, std::string>>;

  ControlGroup(const std::string& controller, const Settings& version_1, const Settings& version_2) {
    std::ifstream own("/proc/self/cgroup");
    for (std::string line; std::getline(own, line) && path_.empty();) {
      auto first = line.find(':'), second = line.find(':', first + 1);
      bool old = (',' + line.substr(first + 1, second - first - 1) + ',').find(',' + controller + ',') != line.npos;
      if (!old && !line.starts_with("0::")) continue;
      auto place = line.substr(second + 1);
      make((old ? "/sys/fs/cgroup/" + controller : "/sys/fs/cgroup") + (place == "/" ? "" : place) + "/fabric_test_" +
               std::to_string(getpid()),
           old ? version_1 : version_2);
    }
  }
  ~ControlGroup() { remove(); }
  ControlGroup(const ControlGroup&) = delete;

  explicit operator bool() const { return !path_.empty(); }
  /// For a child of this process, which so is in the group.
  bool enter() const { return write_file(path_ + "/cgroup.procs", "0"); }
  /// What the function says in such a child.
  bool holds(const std::function<bool()>& function) const {
    pid_t child = fork();
    if (child == 0) _exit(enter() && function() ? 0 : 1);
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
  }

 private:
  void make(const std::string& path, const Settings& settings) {
    if (mkdir(path.c_str(), 0755) != 0) return;
    path_ = path;
    auto limit = path + "/" + settings.front().first;
    if (access(limit.c_str(), W_OK) != 0 || !write_file(limit, settings.front().second)) return remove();
    for (const auto& [file, text] : settings)
      if (access((path + "/" + file).c_str(), W_OK) == 0) write_file(path + "/" + file, text);
  }
  void remove() {
    if (!path_.empty()) rmdir(path_.c_str());
    path_.clear();
  }
  std::string path_;
};

struct MemoryGroup : ControlGroup {
  explicit MemoryGroup(long bytes)
      : ControlGroup("memory", {{"memory.limit_in_bytes", std::to_string(bytes)}},
                     {{"memory.max", std::to_string(bytes)}, {"memory.swap.max", "0"}}) {}
};

/// The time of one processor, on how many it may be spent.
struct OneProcessorGroup : ControlGroup {
  OneProcessorGroup()
      : ControlGroup("cpu", {{"cpu.cfs_quota_us", "100000"}, {"cpu.cfs_period_us", "100000"}},
                     {{"cpu.max", "100000 100000"}}) {}
};

}  // namespace control_group
