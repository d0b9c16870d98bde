#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <fabric/export.h>

namespace fabric {

/// The one way to read environment variables, so that everything that depends on them is tested without processes.
class FABRIC_API EnvReader {
 public:
  virtual ~EnvReader() = default;
  virtual std::optional<std::string> get(const std::string& name) const = 0;
  virtual void set(const std::string& name, const std::string& value) = 0;
  virtual void unset(const std::string& name) = 0;

  bool has(const std::string& name) const { return get(name).has_value(); }
  std::string get_or(const std::string& name, const std::string& fallback) const {
    return get(name).value_or(fallback);
  }
  /// The variable as an integer in [low, high]; throws ConfigError naming variable and value when it is something else.
  std::optional<int> get_int(const std::string& name, int low = 0, int high = 1 << 30) const;
  /// As get_int; throws ConfigError naming the variable and `who` when it is missing.
  int require_int(const std::string& name, const std::string& who) const;
  std::string require(const std::string& name, const std::string& who) const;
};

/// The variables of this process.
FABRIC_API std::shared_ptr<EnvReader> process_env();

/// Variables out of a map, for tests.
class FABRIC_API MapEnv : public EnvReader {
 public:
  MapEnv() = default;
  explicit MapEnv(std::map<std::string, std::string> values) : values_(std::move(values)) {}
  std::optional<std::string> get(const std::string& name) const override;
  void set(const std::string& name, const std::string& value) override { values_[name] = value; }
  void unset(const std::string& name) override { values_.erase(name); }
  const std::map<std::string, std::string>& values() const { return values_; }

 private:
  std::map<std::string, std::string> values_;
};

}  // namespace fabric
