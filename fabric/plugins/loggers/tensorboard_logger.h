#pragma once

#include <memory>

#include <fabric/base/env_reader.h>
#include <fabric/config.h>
#include <fabric/plugins/loggers/logger.h>

namespace fabric {

/// Writes an event file for TensorBoard into `root_dir/run_name/version[/sub_dir]`.
class FABRIC_API TensorBoardLogger : public Logger {
 public:
  struct Config {
    /// A leading ~ and $VARIABLES are expanded, here and in `sub_dir`; `root_dir()` returns the result.
    std::string root_dir = ".";
    /// What `name()` returns; not called `name`, which in a file is the kind of logger. May be empty: then the version
    /// lies in root_dir.
    std::string run_name = "fabric_logs";
    /// Used as it is; empty: "version_N" with the first N that is free.
    std::string version = {};
    std::string sub_dir = {};
    /// Goes before each metric's name, with a "-".
    std::string prefix = {};
    /// Adds the metric "hp_metric" = -1 when hyperparameters are logged without metrics: TensorBoard's table of
    /// hyperparameters shows only runs that have a metric.
    bool default_hp_metric = true;
    /// Events are written when this many are waiting, or at the first one after `flush_secs`.
    int max_queue = 10;
    double flush_secs = 120;
    FABRIC_FIELDS(Config, root_dir, run_name, version, sub_dir, prefix, default_hp_metric, max_queue, flush_secs)
    void validate() const;
  };

  TensorBoardLogger();
  /// Paths are expanded by the variables of `env`.
  explicit TensorBoardLogger(Config config, const EnvReader& env = *process_env());
  /// Writes what is buffered; errors at that point are logged, not thrown.
  ~TensorBoardLogger() override;

  std::string name() const override;
  std::string version() const override;
  std::string root_dir() const override;
  std::string log_dir() const override;
  /// TensorBoard keeps values as 32-bit floats.
  void log_metrics(const Metrics& metrics, std::optional<std::int64_t> step) override;
  void log_text(const std::string& tag, const std::string& text, std::int64_t step = 0);
  /// Nested settings become "a/b/0"; what is neither number, bool nor string is written as text.
  void log_hyperparams(const Tree& params) override;
  /// With the metrics that the table of hyperparameters is to show.
  void log_hyperparams(const Tree& params, const Metrics& metrics);
  void save() override;
  /// Closes the event file; logging again afterwards starts another one. A status other than "success" marks the run as
  /// failed in the table of hyperparameters.
  void finalize(const std::string& status) override;

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace fabric
