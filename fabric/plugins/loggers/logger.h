#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include <fabric/base/tree.h>

namespace fabric {

using Metrics = std::map<std::string, double>;

/// Where metrics go. Fabric calls it on global rank 0 only; what `Fabric::logger()` returns on other ranks does
/// nothing.
class FABRIC_API Logger {
 public:
  virtual ~Logger() = default;
  /// What the run is called, without its version.
  virtual std::string name() const = 0;
  virtual std::string version() const = 0;
  /// The folder above all runs, and the one of this run; they may not exist before something is logged.
  virtual std::string root_dir() const = 0;
  virtual std::string log_dir() const = 0;
  /// `step` missing: the logger counts on from the last one.
  virtual void log_metrics(const Metrics& metrics, std::optional<std::int64_t> step) = 0;
  /// The settings of the run; may be nested.
  virtual void log_hyperparams(const Tree& params) = 0;
  /// Writes what is still buffered.
  virtual void save() {}
  /// The run is over: "success" or "failed".
  virtual void finalize(const std::string& /*status*/) { save(); }
};

}  // namespace fabric
