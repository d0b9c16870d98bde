#pragma once

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric {

/// What one kind of thing is made by, by name. Case is ignored, the order of registration kept. Thread-safe.
template <class Maker>
class NamedRegistry {
 public:
  using Entries = std::vector<std::pair<std::string, Maker>>;
  /// `kind` is what errors call the things: "accelerator".
  NamedRegistry(std::string kind, Entries built_in) : kind_(std::move(kind)), entries_(std::move(built_in)) {}

  /// Throws ConfigError for an empty name, and for one that is taken, unless `override_existing`; MisuseError for an
  /// empty maker.
  void add(const std::string& name, Maker maker, bool override_existing) {
    if (name.empty()) throw ConfigError("a new " + kind_ + " needs a name");
    if (!maker) throw MisuseError(kind_ + " '" + name + "' was registered with an empty function");
    std::lock_guard lock(mutex_);
    auto known = position(lower_case(name));
    if (known == entries_.end()) {
      entries_.emplace_back(lower_case(name), std::move(maker));
      return;
    }
    if (!override_existing)
      throw ConfigError(kind_ + " '" + known->first + "' is registered already; pass override_existing to replace it");
    known->second = std::move(maker);
  }
  /// A copy, so that nothing is locked while it is called; empty for an unknown name.
  Maker find(const std::string& name) const {
    std::lock_guard lock(mutex_);
    for (const auto& [known, maker] : entries_)
      if (known == lower_case(name)) return maker;
    return {};
  }
  /// As find, but an unknown name is a ConfigError with the nearest one.
  Maker get(const std::string& name) const {
    auto maker = find(name);
    if (!maker) refuse(name);
    return maker;
  }
  std::vector<std::string> names() const {
    std::lock_guard lock(mutex_);
    std::vector<std::string> all;
    for (const auto& [name, maker] : entries_) all.push_back(name);
    return all;
  }

 private:
  typename Entries::iterator position(const std::string& name) {
    return std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry.first == name; });
  }
  [[noreturn]] void refuse(const std::string& name) const {
    throw ConfigError("unknown " + kind_ + " '" + name + "'" + did_you_mean(lower_case(name), names()));
  }

  std::string kind_;
  mutable std::mutex mutex_;
  Entries entries_;
};

}  // namespace fabric
