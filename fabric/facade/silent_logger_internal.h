#pragma once

#include <fabric/plugins/loggers/logger.h>

namespace fabric {

/// Stands for a logger on the ranks that do not log: it tells what the logger is and drops what it is given.
class SilentLogger : public Logger {
 public:
  explicit SilentLogger(std::shared_ptr<Logger> logger) : logger_(std::move(logger)) {}
  std::string name() const override { return logger_->name(); }
  std::string version() const override { return logger_->version(); }
  std::string root_dir() const override { return logger_->root_dir(); }
  std::string log_dir() const override { return logger_->log_dir(); }
  void log_metrics(const Metrics&, std::optional<std::int64_t>) override {}
  void log_hyperparams(const Tree&) override {}
  void finalize(const std::string&) override {}

 private:
  std::shared_ptr<Logger> logger_;
};

}  // namespace fabric
