#include <fabric/plugins/loggers/csv_logger.h>

#include <charconv>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/log.h>
#include <fabric/base/tree_io.h>

#include "plugins/loggers/csv_table.h"
#include "plugins/loggers/run_folder.h"

namespace fabric {
namespace {

std::string number_text(double value) {
  char text[32];
  auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return std::string(text, end);
}

}  // namespace

struct CsvLogger::Core {
  Core(Config given, const EnvReader& env)
      : config(std::move(given)), folder(expanded_path(config.root_dir, env), config.run_name, config.version) {
    config.validate();
  }
  CsvTable& open() {
    if (!table) {
      folder.create();
      table.emplace(folder.path() / "metrics.csv");
      if (!last_step) last_step = table->last_step();
    }
    return *table;
  }
  void flush() {
    if (rows.empty()) return;
    open().append(rows);
    rows.clear();
  }

  Config config;
  RunFolder folder;
  std::optional<CsvTable> table;
  std::vector<CsvTable::Row> rows;
  std::optional<std::int64_t> last_step;
};

void CsvLogger::Config::validate() const {
  if (flush_logs_every_n_steps < 1)
    throw ConfigError("flush_logs_every_n_steps must be 1 or more, given " + std::to_string(flush_logs_every_n_steps));
}

CsvLogger::CsvLogger() : CsvLogger(Config{}) {}
CsvLogger::CsvLogger(Config config, const EnvReader& env) : core_(std::make_unique<Core>(std::move(config), env)) {}

CsvLogger::~CsvLogger() {
  try {
    core_->flush();
  } catch (const std::exception& error) {
    log::error(std::string("CSV logger: the last rows are lost: ") + error.what());
  }
}

std::string CsvLogger::name() const { return core_->folder.name(); }
std::string CsvLogger::version() const { return core_->folder.version(); }
std::string CsvLogger::root_dir() const { return core_->folder.root(); }
std::string CsvLogger::log_dir() const { return core_->folder.path().string(); }

void CsvLogger::log_metrics(const Metrics& metrics, std::optional<std::int64_t> step) {
  if (metrics.contains("step") && core_->config.prefix.empty())
    log::warn_once(
        "CSV logger: a metric named 'step' is left out; the column holds the step number. Rename the metric");
  // The file decides where counting goes on, so it is looked at before the first row.
  if (!step) core_->open();
  std::int64_t at = step.value_or(core_->last_step.value_or(-1) + 1);
  CsvTable::Row row;
  const auto& prefix = core_->config.prefix;
  for (const auto& [name, value] : metrics) row[prefix.empty() ? name : prefix + "-" + name] = number_text(value);
  row["step"] = std::to_string(at);
  core_->rows.push_back(std::move(row));
  core_->last_step = at;
  auto every = static_cast<std::int64_t>(core_->config.flush_logs_every_n_steps);
  if ((at + 1) % every == 0 || static_cast<std::int64_t>(core_->rows.size()) >= every) core_->flush();
}

void CsvLogger::log_hyperparams(const Tree& params) {
  core_->open();
  write_whole_file(core_->folder.path() / "hparams.yaml", write_yaml(params));
}

void CsvLogger::save() { core_->flush(); }

}  // namespace fabric
