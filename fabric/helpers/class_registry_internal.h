#pragma once
// Private to the registries of optimizers and LR schedulers.

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric::detail {

/// Makers by the name of a class, which may be written with one of the prefixes that Python's modules have.
template <class Make>
class ClassRegistry {
 public:
  using Entries = std::vector<std::pair<std::string, Make>>;
  ClassRegistry(std::string kind, std::vector<std::string> prefixes, Entries entries)
      : kind_(std::move(kind)), prefixes_(std::move(prefixes)), entries_(std::move(entries)) {}

  /// The registered name and its maker; throws ConfigError for an unknown class.
  std::pair<std::string, Make> find(const std::string& class_path) const {
    std::lock_guard lock(mutex_);
    // A name that was registered as it stands comes first, so that names of one's own may have dots.
    for (const auto& entry : entries_)
      if (entry.first == class_path) return entry;
    for (const auto& prefix : prefixes_)
      if (class_path.starts_with(prefix))
        for (const auto& entry : entries_)
          if (entry.first == class_path.substr(prefix.size())) return entry;
    throw ConfigError("unknown " + kind_ + " '" + class_path + "'" +
                      did_you_mean(class_path.substr(class_path.find_last_of('.') + 1), all_names()));
  }

  void add(const std::string& name, Make make, bool override_existing) {
    if (!make) throw ConfigError(kind_ + " '" + name + "': the function that makes it is empty");
    std::lock_guard lock(mutex_);
    for (auto& [known, maker] : entries_) {
      if (known != name) continue;
      if (!override_existing) throw ConfigError(kind_ + " '" + name + "' is registered already");
      maker = std::move(make);
      return;
    }
    entries_.emplace_back(name, std::move(make));
  }

  std::vector<std::string> names() const {
    std::lock_guard lock(mutex_);
    return all_names();
  }

 private:
  std::vector<std::string> all_names() const {
    std::vector<std::string> names;
    for (const auto& entry : entries_) names.push_back(entry.first);
    return names;
  }
  mutable std::mutex mutex_;
  std::string kind_;
  std::vector<std::string> prefixes_;
  Entries entries_;
};

}  // namespace fabric::detail
