#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/base/registry/registered_parts.h>

namespace fabric {

/// What all registries have in common, whatever they hold: registered_parts() lists them by it.
class FABRIC_API AnyRegistry {
 public:
  AnyRegistry() = default;
  virtual ~AnyRegistry() = default;
  AnyRegistry(const AnyRegistry&) = delete;
  AnyRegistry& operator=(const AnyRegistry&) = delete;
  virtual PartList list() const = 0;

 protected:
  /// Called by the class that is made: at the end of its constructor, and first in its destructor.
  void enlist();
  void delist();
};

/// How names are compared: the key under which a name is kept, and the keys that a name may mean when it is looked up,
/// the likeliest first.
struct NameRule {
  std::function<std::string(const std::string&)> key = lower_case;
  std::function<std::vector<std::string>(const std::string&)> candidates = {};  // empty: the key alone
};

/// A class's name, which may be written with one of the prefixes that Python's modules have. A name that was registered
/// as it stands comes first, so that names of one's own may have dots.
FABRIC_API NameRule class_names(std::vector<std::string> prefixes);

/// Parts of one kind by name: what users choose by a word. `T` makes the part: a function, or a struct with a member
/// `make`. The order of registration is kept. Thread-safe; a part is copied out before it is used, so that its maker
/// may register others.
template <class T>
class Registry final : public AnyRegistry {
 public:
  struct Entry {
    std::string name;
    T value;
    std::string description = {};
  };
  /// `kind` is what errors call the parts: "accelerator".
  Registry(std::string kind, std::vector<Entry> built_in, NameRule rule = {})
      : kind_(std::move(kind)), rule_(std::move(rule)), entries_(std::move(built_in)) {
    enlist();
  }
  ~Registry() override { delist(); }

  /// Throws ConfigError for an empty name, and for one that is taken, unless `override_existing`; MisuseError for an
  /// empty maker.
  void add(const std::string& name, T value, bool override_existing, std::string description = "") {
    if (name.empty()) throw ConfigError("a new " + kind_ + " needs a name");
    if (!is_filled(value)) throw MisuseError(kind_ + " '" + name + "' was registered with an empty function");
    auto key = rule_.key(name);
    std::lock_guard lock(mutex_);
    auto* known = at(key);
    if (!known) {
      entries_.push_back({std::move(key), std::move(value), std::move(description)});
      return;
    }
    if (!override_existing)
      throw ConfigError(kind_ + " '" + known->name + "' is registered already; pass override_existing to replace it");
    known->value = std::move(value);
    known->description = std::move(description);
  }
  bool contains(const std::string& name) const {
    std::lock_guard lock(mutex_);
    return meant(name) != nullptr;
  }
  /// The part, with the name it was registered under; throws ConfigError with the nearest name for an unknown one.
  /// `more_names` are valid, too, and known elsewhere.
  Entry get(const std::string& name, const std::vector<std::string>& more_names = {}) const {
    std::lock_guard lock(mutex_);
    if (const auto* entry = meant(name)) return *entry;
    auto valid = all_names();
    valid.insert(valid.end(), more_names.begin(), more_names.end());
    auto key = rule_.key(name);
    if (rule_.candidates) key.erase(0, key.find_last_of('.') + 1);  // a scope is never near to anything
    throw ConfigError("unknown " + kind_ + " '" + name + "'" + did_you_mean(key, valid));
  }
  /// Throws ConfigError for an unknown name.
  void remove(const std::string& name) {
    auto known = get(name).name;
    std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry& entry) { return entry.name == known; });
  }
  std::vector<std::string> names() const {
    std::lock_guard lock(mutex_);
    return all_names();
  }
  std::vector<Entry> entries() const {
    std::lock_guard lock(mutex_);
    return entries_;
  }
  PartList list() const override {
    PartList all{kind_, {}};
    std::lock_guard lock(mutex_);
    for (const auto& entry : entries_) all.parts.push_back({entry.name, entry.description});
    return all;
  }

 private:
  static bool is_filled(const T& value) {
    if constexpr (requires { value.make; })
      return static_cast<bool>(value.make);
    else
      return static_cast<bool>(value);
  }
  const Entry* at(const std::string& key) const {
    for (const auto& entry : entries_)
      if (entry.name == key) return &entry;
    return nullptr;
  }
  Entry* at(const std::string& key) { return const_cast<Entry*>(std::as_const(*this).at(key)); }
  const Entry* meant(const std::string& name) const {
    if (!rule_.candidates) return at(rule_.key(name));
    for (const auto& key : rule_.candidates(name))
      if (const auto* entry = at(key)) return entry;
    return nullptr;
  }
  std::vector<std::string> all_names() const {
    std::vector<std::string> all;
    for (const auto& entry : entries_) all.push_back(entry.name);
    return all;
  }

  std::string kind_;
  NameRule rule_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace fabric
