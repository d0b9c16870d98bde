#pragma once

#include <memory>

#include <fabric/base/env_reader.h>
#include <fabric/config.h>
#include <fabric/plugins/loggers/logger.h>

namespace fabric {

/// Writes `root_dir/run_name/version/metrics.csv`: one row per call, columns sorted, missing cells empty. A run that
/// goes on with an existing version appends. Hyperparameters go to `hparams.yaml` beside it. A write that fails throws
/// Error and loses no row: the next one writes them again.
class FABRIC_API CsvLogger : public Logger {
 public:
  struct Config {
    /// A leading ~ and $VARIABLES are expanded; `root_dir()` returns the result.
    std::string root_dir = ".";
    /// What `name()` returns; not called `name`, which in a file is the kind of logger. May be empty: then the version
    /// lies in root_dir.
    std::string run_name = "fabric_logs";
    /// Used as it is; empty: "version_N" with the first N that is free.
    std::string version = {};
    /// Goes before each metric's name, with a "-".
    std::string prefix = {};
    /// Rows are written when `step + 1` is a multiple of it, and when that many are waiting.
    int flush_logs_every_n_steps = 100;
    FABRIC_FIELDS(Config, root_dir, run_name, version, prefix, flush_logs_every_n_steps)
    void validate() const;
  };

  CsvLogger();
  /// Paths are expanded by the variables of `env`.
  explicit CsvLogger(Config config, const EnvReader& env = *process_env());
  /// Writes what is buffered; errors at that point are logged, not thrown.
  ~CsvLogger() override;

  std::string name() const override;
  std::string version() const override;
  std::string root_dir() const override;
  std::string log_dir() const override;
  void log_metrics(const Metrics& metrics, std::optional<std::int64_t> step) override;
  void log_hyperparams(const Tree& params) override;
  void save() override;

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace fabric
