#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/base/tree_io.h>
#include <fabric/fabric.h>
#include <fabric/helpers/checkpointing/checkpoint_files_internal.h>
#include <fabric/helpers/checkpointing/model_checkpoint_internal.h>

namespace fabric {
namespace {

namespace fs = std::filesystem;

fs::path whole_path(const fs::path& path) {
  fs::path whole = path;
  const std::string text = path.string();
  if (text == "~" || text.starts_with("~/"))
    if (auto home = process_env()->get("HOME")) whole = *home + text.substr(1);
  std::error_code error;
  fs::path canonical = fs::weakly_canonical(fs::absolute(whole), error);
  if (error) canonical = fs::absolute(whole).lexically_normal();
  return canonical.has_filename() ? canonical : canonical.parent_path();  // "a/b/.." is normally "a/"
}

fs::path folder_beside_logs(const Fabric& fabric) {
  if (fabric.loggers().empty() || fabric.global_rank() != 0) return "checkpoints";
  return fs::path(fabric.loggers().front()->log_dir()) / "checkpoints";
}

}  // namespace

ModelCheckpoint::Impl::Impl(Config given, Peers who, CheckpointTarget how, const Path& default_folder)
    : config((given.validate(), std::move(given))),
      peers(std::move(who)),
      target(std::move(how)),
      records(config.mode) {
  // Ranks may run in different folders; the one that writes decides.
  folder = peers.broadcast(whole_path(config.dirpath.empty() ? default_folder : config.dirpath).string()).as_string();
  if (!config.save_on_signals.empty()) signals = std::make_unique<InterruptSignals>(config.save_on_signals);
}

ModelCheckpoint::ModelCheckpoint(Config config, const Fabric& fabric)
    : impl_(std::make_unique<Impl>(std::move(config), Peers(fabric), target_through(fabric),
                                   folder_beside_logs(fabric))) {}

ModelCheckpoint::ModelCheckpoint(Config config, Peers peers)
    : ModelCheckpoint(std::move(config), SaveFunction(), std::move(peers)) {}

ModelCheckpoint::ModelCheckpoint(Config config, SaveFunction save, Peers peers)
    : impl_(std::make_unique<Impl>(std::move(config), peers, target_without_fabric(std::move(save), peers),
                                   "checkpoints")) {
  if (impl_->config.copy_beside)
    throw ConfigError(
        "ModelCheckpoint: copy_beside needs Fabric, whose optimizers wait with their step until the copy is made; "
        "without, leave it out");
}

ModelCheckpoint::~ModelCheckpoint() = default;

// --- triggers

void ModelCheckpoint::Impl::place_step(const Position& at) {
  counts_steps = true;
  step = at.step >= 0 ? at.step : step + 1;
  epoch = at.epoch >= 0 ? at.epoch : std::max(validations, train_epochs);
}

// `count` becomes the number of the epoch after this one.
void ModelCheckpoint::Impl::place_epoch(std::int64_t& count, const Position& at) {
  epoch = at.epoch >= 0 ? at.epoch : count;
  count = epoch + 1;
  if (at.step >= 0)
    step = at.step;
  else if (!counts_steps)
    step = epoch + 1;
}

bool ModelCheckpoint::Impl::epoch_due() const {
  bool none = !config.every_n_train_steps && !config.every_n_epochs && !config.train_time_interval;
  int every = none ? 1 : config.every_n_epochs.value_or(0);
  return every > 0 && (epoch + 1) % every == 0;
}

bool ModelCheckpoint::Impl::step_due() const {
  int every = config.every_n_train_steps.value_or(0);
  return every > 0 && step % every == 0;
}

ModelCheckpoint::Impl::Agreed ModelCheckpoint::Impl::agree(bool everybody) {
  if (!signals && (everybody || !config.train_time_interval)) return {};  // time matters to `step` alone
  if (!peers.is_alone() && !everybody && step % config.agree_every_n_steps != 0) return {};
  Agreed agreed;
  auto now = Clock::now();
  if (config.train_time_interval)
    agreed.time = std::chrono::duration<double>(now - last_time).count() >= *config.train_time_interval;
  if (signals && !interrupted_by) agreed.signal = signals->received();
  if (!peers.is_alone()) {
    // Rank 0's clock counts, and everybody's signals.
    auto together = peers.sum(
        {peers.rank() == 0 && agreed.time ? 1.0 : 0.0, agreed.signal ? 1.0 : 0.0, static_cast<double>(agreed.signal)});
    agreed.time = together[0] > 0;
    agreed.signal = together[1] > 0 ? static_cast<int>(together[2] / together[1]) : 0;
  }
  return agreed;
}

bool ModelCheckpoint::Impl::save_due(const Metrics& metrics, const StateSource& state, bool epoch_trigger) {
  bool late = std::exchange(deferred, false);
  if (!late && !(epoch_trigger && epoch_due())) return false;
  if (step <= 0 || step == records.saved_step) return false;
  return save(late ? Cause::step : Cause::epoch, metrics, state);
}

bool ModelCheckpoint::Impl::save_interrupted(int signal, const Metrics& metrics, const StateSource& state) {
  interrupted_by = signal;
  bool saved = step > 0 && step != records.saved_step && save(Cause::emergency, metrics, state);
  log::rank_zero_warn(InterruptSignals::name(signal) + " came at step " + std::to_string(step) +
                      "; the newest checkpoint is '" + records.newest_path.string() +
                      "'. The loop should end now: interrupted() is true");
  return saved;
}

bool ModelCheckpoint::step(const Metrics& metrics, const StateSource& state, const Position& at) {
  Impl& self = *impl_;
  self.place_step(at);
  self.settle_if_ended();
  auto agreed = self.agree(false);
  if (agreed.signal) return self.save_interrupted(agreed.signal, metrics, state);
  if (agreed.time) self.last_time = Impl::Clock::now();
  if (!agreed.time && !self.step_due()) return false;
  const auto& config = self.config;
  bool waits = at.validation_next && !config.save_on_train_epoch_end.value_or(false);
  if (config.monitor && (waits || !self.peers.all(metrics.contains(*config.monitor)))) {
    self.deferred = true;
    return false;
  }
  if (self.step <= 0 || self.step == self.records.saved_step) return false;
  return self.save(Impl::Cause::step, metrics, state);
}

bool ModelCheckpoint::update(const Metrics& metrics, const StateSource& state, const Position& at) {
  Impl& self = *impl_;
  self.place_epoch(self.validations, at);
  self.validated = true;
  self.settle_if_ended();
  if (int signal = self.agree(true).signal) return self.save_interrupted(signal, metrics, state);
  if (self.config.save_on_train_epoch_end.value_or(false)) return false;
  return self.save_due(metrics, state, true);
}

bool ModelCheckpoint::train_epoch_end(const Metrics& metrics, const StateSource& state, const Position& at) {
  Impl& self = *impl_;
  self.place_epoch(self.train_epochs, at);
  self.settle_if_ended();
  if (int signal = self.agree(true).signal) return self.save_interrupted(signal, metrics, state);
  if (!self.config.save_on_train_epoch_end.value_or(!self.validated)) return false;
  return self.save_due(metrics, state, true);
}

bool ModelCheckpoint::finish(const StateSource& state, const Metrics& metrics) {
  Impl& self = *impl_;
  wait();
  auto mode = self.config.save_last.mode;
  bool missing =
      self.records.newest_path.empty() || (mode == SaveLast::Mode::always && self.records.saved_step != self.step);
  if (!self.config.save_last || !missing || self.step <= 0) return false;
  bool saved = self.save(Impl::Cause::train_end, metrics, state);
  wait();
  return saved;
}

void ModelCheckpoint::guard(const StateSource& state, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    if (config().save_on_exception) {
      log::error(std::string("the training loop ended with an exception: ") + error.what());
      impl_->save_alone(state);
    }
    throw;
  } catch (...) {
    if (config().save_on_exception) impl_->save_alone(state);
    throw;
  }
}

bool ModelCheckpoint::interrupted() const { return impl_->interrupted_by != 0; }

void ModelCheckpoint::wait() { impl_->settle(); }

// --- what there is

const ModelCheckpoint::Config& ModelCheckpoint::config() const { return impl_->config; }
const fs::path& ModelCheckpoint::dirpath() const { return impl_->folder; }
const CheckpointRecords& ModelCheckpoint::records() const { return impl_->records; }

std::optional<double> ModelCheckpoint::best_model_score() const {
  double score = records().best.score;
  return std::isnan(score) ? std::nullopt : std::optional(score);
}

void ModelCheckpoint::write_yaml(const fs::path& path) const {
  auto files = best_k_models();
  bool lower = config().mode == "min";
  std::stable_sort(files.begin(), files.end(),
                   [&](const auto& a, const auto& b) { return lower ? a.score < b.score : a.score > b.score; });
  Tree::Map scores;
  for (const auto& file : files) scores.append(file.path.string(), file.score);
  on_rank_zero(impl_->peers, "write_yaml", [&] {
    write_text_file(path.empty() ? dirpath() / "best_k_models.yaml" : path, fabric::write_yaml(Tree(scores)));
    return Value();
  });
}

// --- for other helpers

void ModelCheckpoint::add_observer(CheckpointObserver& observer) { impl_->observers.push_back(&observer); }
void ModelCheckpoint::add_observer(std::shared_ptr<CheckpointObserver> observer) {
  add_observer(*observer);
  impl_->owned_observers.push_back(std::move(observer));
}
void ModelCheckpoint::remove_observer(CheckpointObserver& observer) { std::erase(impl_->observers, &observer); }

void ModelCheckpoint::protect(const fs::path& path) { impl_->protected_paths.insert(whole_path(path)); }

void ModelCheckpoint::release(const fs::path& path) {
  Impl& self = *impl_;
  const fs::path whole = whole_path(path);
  self.protected_paths.erase(whole);
  if (!self.postponed.erase(whole) || self.peers.rank() != 0) return;
  const auto& records = self.records;  // the name may be in use again
  bool kept =
      whole == records.best.path || whole == records.last_path ||
      std::any_of(records.best_k.begin(), records.best_k.end(), [&](const auto& known) { return known.path == whole; });
  if (kept) return;
  try {
    remove_checkpoint(whole);
  } catch (const CheckpointError& error) {
    log::warn(error.what());
  }
}

// --- state

Value ModelCheckpoint::state_dict() const {
  const Impl& self = *impl_;
  Value state = self.records.state_dict();
  state["dirpath"] = self.folder.string();
  state["monitor"] = self.config.monitor ? Value(*self.config.monitor) : Value();
  state["mode"] = self.config.mode;
  state["epoch"] = self.epoch;
  state["step"] = self.step;
  state["validations"] = self.validations;
  state["train_epochs"] = self.train_epochs;
  state["counts_steps"] = self.counts_steps;
  state["validated"] = self.validated;
  state["deferred"] = self.deferred;
  return state;
}

namespace {

// Why the files of a saved state are not this object's to go on with; empty: they are.
std::string what_differs(const Value& state, const fs::path& folder, const ModelCheckpoint::Config& config) {
  const Value& monitor = state.at("monitor");
  const std::string before = monitor.is_null() ? "none" : monitor.as_string(), now = config.monitor.value_or("none");
  if (const auto& dirpath = state.at("dirpath").as_string(); dirpath != folder.string())
    return "dirpath is '" + folder.string() + "' now and was '" + dirpath + "'";
  if (before != now) return "monitor is '" + now + "' now and was '" + before + "'";
  if (const auto& mode = state.at("mode").as_string(); mode != config.mode)
    return "mode is '" + config.mode + "' now and was '" + mode + "'";
  return {};
}

}  // namespace

void ModelCheckpoint::load_state_dict(const Value& state) {
  Impl& self = *impl_;
  CheckpointRecords read(self.config.mode);
  try {
    read.load_state_dict(state, self.config.save_top_k);
    if (auto why = what_differs(state, self.folder, self.config); !why.empty()) {
      log::rank_zero_warn("ModelCheckpoint: " + why +
                          ". Of the saved state only the paths of the best and the last checkpoint are taken over");
      CheckpointRecords fresh(self.config.mode);
      fresh.best.path = read.best.path;
      fresh.last_path = read.last_path;
      read = std::move(fresh);
    } else {
      self.loaded = true;
    }
    self.epoch = state.at("epoch").as_int();
    self.step = state.at("step").as_int();
    self.validations = state.at("validations").as_int();
    self.train_epochs = state.at("train_epochs").as_int();
    self.counts_steps = state.at("counts_steps").as_bool();
    self.validated = state.at("validated").as_bool();
    self.deferred = state.at("deferred").as_bool();
  } catch (const MisuseError& error) {
    throw CheckpointKeyError(std::string("this is no state of a ModelCheckpoint: ") + error.what());
  }
  try {
    self.settle();
  } catch (const std::exception& error) {
    log::rank_zero_warn(error.what());
  }
  self.records = std::move(read);
}

}  // namespace fabric
