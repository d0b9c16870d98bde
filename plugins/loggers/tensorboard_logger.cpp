#include <fabric/plugins/loggers/tensorboard_logger.h>

#include <fabric/base/log.h>
#include <fabric/base/tree_io.h>

#include "plugins/loggers/run_folder.h"
#include "plugins/loggers/tensorboard_messages.h"

namespace fabric {

struct TensorBoardLogger::Core {
  Core(Config given, const EnvReader& env)
      : config(std::move(given)),
        folder(expanded_path(config.root_dir, env), config.run_name, config.version),
        sub_dir(expanded_path(config.sub_dir, env)) {
    config.validate();
  }
  EventFile& open() {
    if (!file) {
      folder.create(sub_dir);
      file = std::make_unique<EventFile>(log_dir(), config.max_queue, config.flush_secs);
    }
    return *file;
  }
  std::filesystem::path log_dir() const { return sub_dir.empty() ? folder.path() : folder.path() / sub_dir; }
  std::string tag(const std::string& name) const { return config.prefix.empty() ? name : config.prefix + "-" + name; }
  std::int64_t next_step(std::optional<std::int64_t> given) { return last_step = given.value_or(last_step + 1); }

  Config config;
  RunFolder folder;
  std::string sub_dir;
  std::unique_ptr<EventFile> file;
  std::int64_t last_step = -1;
  bool has_hyperparams = false;
};

void TensorBoardLogger::Config::validate() const {
  if (max_queue < 1) throw ConfigError("max_queue must be 1 or more, given " + std::to_string(max_queue));
  if (!(flush_secs >= 0)) throw ConfigError("flush_secs must be 0 or more, given " + write_json(flush_secs));
}

TensorBoardLogger::TensorBoardLogger() : TensorBoardLogger(Config{}) {}
TensorBoardLogger::TensorBoardLogger(Config config, const EnvReader& env)
    : core_(std::make_unique<Core>(std::move(config), env)) {}

TensorBoardLogger::~TensorBoardLogger() {
  try {
    save();
  } catch (const std::exception& error) {
    log::error(std::string("TensorBoard logger: the last events are lost: ") + error.what());
  }
}

std::string TensorBoardLogger::name() const { return core_->folder.name(); }
std::string TensorBoardLogger::version() const { return core_->folder.version(); }
std::string TensorBoardLogger::root_dir() const { return core_->folder.root(); }
std::string TensorBoardLogger::log_dir() const { return core_->log_dir().string(); }

void TensorBoardLogger::log_metrics(const Metrics& metrics, std::optional<std::int64_t> step) {
  auto at = core_->next_step(step);
  auto& file = core_->open();
  for (const auto& [name, value] : metrics) file.add_summary_value(tensorboard::scalar(core_->tag(name), value), at);
}

void TensorBoardLogger::log_text(const std::string& tag, const std::string& text, std::int64_t step) {
  core_->open().add_summary_value(tensorboard::text(core_->tag(tag), text), step);
}

void TensorBoardLogger::log_hyperparams(const Tree& params) {
  log_hyperparams(params, core_->config.default_hp_metric ? Metrics{{"hp_metric", -1}} : Metrics{});
}

void TensorBoardLogger::log_hyperparams(const Tree& params, const Metrics& metrics) {
  auto& file = core_->open();
  for (const auto& [name, value] : metrics) file.add_summary_value(tensorboard::scalar(name, value), 0);
  file.add_summary_value(tensorboard::experiment(params, metrics), 0);
  file.add_summary_value(tensorboard::session_start(params), 0);
  core_->has_hyperparams = true;
}

void TensorBoardLogger::save() {
  if (core_->file) core_->file->flush();
}

void TensorBoardLogger::finalize(const std::string& status) {
  if (std::exchange(core_->has_hyperparams, false))
    core_->open().add_summary_value(tensorboard::session_end(status == "success"), 0);
  save();
  core_->file.reset();
}

}  // namespace fabric
