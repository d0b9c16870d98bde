#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include <fabric/tree.h>

namespace fabric {

using Metrics = std::map<std::string, double>;

/// Where metrics go. Fabric calls it on global rank 0 only.
class FABRIC_API Logger {
 public:
  virtual ~Logger() = default;
  virtual std::string name() const = 0;
  virtual std::string version() const = 0;
  virtual std::string root_dir() const = 0;
  virtual std::string log_dir() const = 0;
  virtual std::string group_separator() const { return "/"; }
  /// `step` missing: the logger counts on from the last one.
  virtual void log_metrics(const Metrics& metrics, std::optional<std::int64_t> step) = 0;
  virtual void log_hyperparams(const Tree& params) = 0;
  /// Writes what is still buffered.
  virtual void save() {}
  virtual void finalize(const std::string& /*status*/) { save(); }
};

}  // namespace fabric
