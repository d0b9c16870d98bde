#include <cmath>
#include <string>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/checkpointing/checkpoint_name_internal.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

namespace fabric {

SaveLast::SaveLast(const char* word) {
  const std::string text = word;
  if (text == "link")
    mode = Mode::link;
  else if (text == "always")
    mode = Mode::always;
  else
    throw ConfigError("save_last must be true, false, 'link' or 'always', given '" + text + "'" +
                      did_you_mean(text, {"link", "always"}));
}

SaveLast SaveLast::from_tree(const Tree& tree) {
  if (tree.is_null()) return {};
  if (tree.is_bool()) return tree.as_bool();
  if (!tree.is_string())
    throw ConfigError(std::string("must be true, false, 'link' or 'always', given ") + tree.kind());
  if (tree.as_string() == "true" || tree.as_string() == "false") return tree.as_string() == "true";
  return tree.as_string().c_str();
}

Tree SaveLast::to_tree() const {
  if (mode == Mode::link) return "link";
  if (mode == Mode::always) return "always";
  return mode == Mode::copy;
}

namespace {

void require_not_negative(const char* name, double value) {
  if (!(value >= 0) || std::isinf(value))
    throw ConfigError(std::string(name) + " must be 0 or more, given " + std::to_string(value));
}

void check_triggers(const ModelCheckpoint::Config& config) {
  int given = 0;
  if (config.every_n_train_steps) {
    require_not_negative("every_n_train_steps", *config.every_n_train_steps);
    given += *config.every_n_train_steps > 0;
  }
  if (config.every_n_epochs) {
    require_not_negative("every_n_epochs", *config.every_n_epochs);
    given += *config.every_n_epochs > 0;
  }
  if (config.train_time_interval) {
    require_not_negative("train_time_interval", *config.train_time_interval);
    ++given;
  }
  if (given > 1)
    throw ConfigError(
        "every_n_train_steps, every_n_epochs and train_time_interval exclude each other: give one, and use a second "
        "ModelCheckpoint for another rhythm");
}

}  // namespace

void ModelCheckpoint::Config::validate() const {
  if (save_top_k < -1)
    throw ConfigError("save_top_k must be -1 (all), 0 (none) or a number of files, given " +
                      std::to_string(save_top_k));
  if (mode != "min" && mode != "max")
    throw ConfigError("mode must be 'min' or 'max', given '" + mode + "'" + did_you_mean(mode, {"min", "max"}));
  if (!monitor && save_top_k > 1)
    throw ConfigError("save_top_k = " + std::to_string(save_top_k) +
                      " needs a monitor: the name of the metric that ranks the files. Without one, -1 (keep all), 0 or "
                      "1 (the newest) are possible");
  if (monitor && monitor->empty()) throw ConfigError("monitor must be the name of a metric, given an empty text");
  if (copy_beside && !async)
    throw ConfigError("copy_beside says how a save beside the training copies the state; set async = true as well");
  check_triggers(*this);
  if (agree_every_n_steps < 1)
    throw ConfigError("agree_every_n_steps must be 1 or more, given " + std::to_string(agree_every_n_steps));
  if (dirpath.string().find("://") != std::string::npos)
    throw ConfigError("dirpath '" + dirpath.string() + "' is no local folder" +
                      (save_last.mode == SaveLast::Mode::link ? ", and save_last = 'link' makes links in one" : "") +
                      "; mount the storage, or write to it with a SaveFunction");
  if (!filename.empty()) check_checkpoint_name(filename);
  check_checkpoint_name(last_filename);
  if (extension.find('/') != std::string::npos || (!extension.empty() && extension[0] != '.'))
    throw ConfigError("extension must begin with a point, as '.safetensors' does, given '" + extension + "'");
}

}  // namespace fabric
