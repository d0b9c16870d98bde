#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <fabric/config.h>
#include <fabric/helpers/checkpointing/checkpoint_records.h>
#include <fabric/helpers/peers.h>
#include <fabric/plugins/loggers/logger.h>
#include <fabric/state/state.h>

namespace fabric {

class Fabric;

/// Whether there is also a file under a fixed name, for whoever wants the newest checkpoint: `false`; `true`, a copy of
/// each file that is saved; "link", a relative symbolic link to it; "always", written at each trigger, also when the
/// metric was not good enough for a file of its own.
struct FABRIC_API SaveLast {
  enum class Mode { never, copy, link, always };
  SaveLast() = default;
  SaveLast(bool copy) : mode(copy ? Mode::copy : Mode::never) {}
  /// Throws ConfigError for another word than "link" and "always".
  SaveLast(const char* word);
  Mode mode = Mode::never;
  bool operator==(const SaveLast&) const = default;
  explicit operator bool() const { return mode != Mode::never; }
  static SaveLast from_tree(const Tree& tree);
  Tree to_tree() const;
};

/// What a checkpoint is to hold: a State, or a function that makes one, which is called only when something is saved.
/// A parameter type: it borrows what it is made from, for the length of the call.
class StateSource {
 public:
  StateSource(const State& state)
      : object_(&state), make_([](const StateSource& self) { return *static_cast<const State*>(self.object_); }) {}
  StateSource(std::initializer_list<State::value_type> entries)
      : entries_(entries), make_([](const StateSource& self) { return State(self.entries_); }) {}
  template <class Make>
  requires(std::is_invocable_r_v<State, const Make&>) StateSource(const Make& make)
      : object_(&make),
        make_([](const StateSource& self) { return State((*static_cast<const Make*>(self.object_))()); }) {}
  State operator()() const { return make_(*this); }

 private:
  const void* object_ = nullptr;
  std::initializer_list<State::value_type> entries_;
  State (*make_)(const StateSource&);
};

/// Where a training loop is. What is missing (-1) is counted: epochs by the calls of `update` or `train_epoch_end`,
/// steps by those of `step`, or one per epoch in a loop that does not call it.
struct LoopPosition {
  std::int64_t epoch = -1;  // counts from 0
  std::int64_t step = -1;   // optimizer steps so far
  /// For `step`: a validation follows at once, so what is due waits for `update` and its fresh metric.
  bool validation_next = false;
};

/// A file that is about to be written, with ModelCheckpoint's paths and scores already as the file will state them.
struct CheckpointEvent {
  std::filesystem::path path;
  /// One of the best k, rather than `last` or one after a signal or an exception.
  bool top_k = false;
  /// best_model_path() changed with it.
  bool new_best = false;
};

/// Told on every rank. The fine-tuning scheduler notes by it what the best checkpoint holds.
class FABRIC_API CheckpointObserver {
 public:
  virtual ~CheckpointObserver() = default;
  /// The state has not been collected yet: what changes here is in the file.
  virtual void before_save(const CheckpointEvent&) {}
  /// The file could not be written; paths and scores are again what they were before it.
  virtual void save_failed(const CheckpointEvent&) {}
};

/// Keeps the best, the last and the due checkpoints of a run. The loop says when: `step` after each optimizer step,
/// `update` after each validation, `train_epoch_end` after each pass over the data, `finish` at the end; each saves
/// when the triggers say so. Every rank calls them; the ranks decide together, and rank 0 alone writes and removes
/// files. Save the object itself, too ({"keep", keep}), so that a resumed run goes on with the same files.
class FABRIC_API ModelCheckpoint : public Stateful {
 public:
  struct Config {
    /// Empty: `checkpoints` in the first logger's folder, or in the current one.
    std::filesystem::path dirpath = {};
    /// See format_checkpoint_name; empty: "{epoch}-{step}".
    std::string filename = {};
    /// The metric that ranks the files; without one each new file replaces the one before.
    std::optional<std::string> monitor = {};
    bool verbose = false;
    SaveLast save_last = {};
    /// How many of the best to keep; -1: all, 0: none. Without `monitor` -1, 0 or 1.
    int save_top_k = 1;
    /// `guard` saves when an exception leaves it.
    bool save_on_exception = false;
    /// Leaves optimizers and everything Stateful out; modules and plain values stay.
    bool save_weights_only = false;
    /// "min" or "max".
    std::string mode = "min";
    bool auto_insert_metric_name = true;
    /// At most one of the three triggers; none: each epoch. 0 switches one off.
    std::optional<int> every_n_train_steps = {};
    /// Seconds.
    std::optional<double> train_time_interval = {};
    std::optional<int> every_n_epochs = {};
    /// The epoch trigger belongs to `train_epoch_end` (true) or `update` (false). Missing: to `update`, or to
    /// `train_epoch_end` in a loop that never calls `update`.
    std::optional<bool> save_on_train_epoch_end = {};
    /// A file that is there already is left alone: the new one gets -v1, -v2 … at the end of its name.
    bool enable_version_counter = true;
    /// Holds the loop only while the state is copied to host memory; see fabric/docs/model_checkpoint.md.
    bool async = false;
    /// With `async`, through Fabric: parameters and optimizer states are copied under the next passes, and a wrapped
    /// optimizer's step waits for that (SaveOptions::copy_beside).
    bool copy_beside = false;
    /// "SIGTERM", "SIGUSR1" …: while this object lives, such a signal makes the next call save and sets interrupted().
    std::vector<std::string> save_on_signals = {};
    /// Several ranks agree on time and signals only at steps that are a multiple of this.
    int agree_every_n_steps = 10;
    /// The name behind `last_model_path`, a pattern like `filename`.
    std::string last_filename = "last";
    /// The end of every name; `.pt` suits Fabric's checkpoint_io "torch".
    std::string extension = ".safetensors";
    FABRIC_FIELDS(Config, dirpath, filename, monitor, verbose, save_last, save_top_k, save_on_exception,
                  save_weights_only, mode, auto_insert_metric_name, every_n_train_steps, train_time_interval,
                  every_n_epochs, save_on_train_epoch_end, enable_version_counter, async, copy_beside, save_on_signals,
                  agree_every_n_steps, last_filename, extension)
    void validate() const;
  };
  using Position = LoopPosition;
  /// Writes a checkpoint: called on rank 0 alone, with `async` in a thread of its own. It must leave an old file as it
  /// is when it fails, as fabric::CheckpointIO does.
  using SaveFunction = std::function<void(const std::filesystem::path& path, const Value& checkpoint)>;

  /// Through `fabric`, which must outlive this object and have been launched. Throws ConfigError for wrong settings.
  ModelCheckpoint(Config config, const Fabric& fabric);
  /// Without Fabric: safetensors files, or what `save` writes.
  explicit ModelCheckpoint(Config config, Peers peers = {});
  ModelCheckpoint(Config config, SaveFunction save, Peers peers = {});
  /// Waits for a file that is being written; logs its failure. Never throws, never waits for another rank.
  ~ModelCheckpoint() override;

  // --- in the loop; all return whether a checkpoint was saved (its writing begun, with `async`). CheckpointError: this
  // file, or the one before it with `async`, could not be written; everything is then as before that save.
  /// After each optimizer step: the step and time triggers. Costs some nanoseconds when nothing is due.
  bool step(const StateSource& state, const Position& at = {}) { return step({}, state, at); }
  bool step(const Metrics& metrics, const StateSource& state, const Position& at = {});
  /// After each validation: the epoch trigger and what waits for the metric. Throws ConfigError when `monitor` is not
  /// among the metrics; ranks whose values differ save only if each value is good enough.
  bool update(const Metrics& metrics, const StateSource& state, const Position& at = {});
  /// After the last batch of an epoch (and its validation).
  bool train_epoch_end(const Metrics& metrics, const StateSource& state, const Position& at = {});
  /// At the end of training: writes `last` if nothing was ever saved, and waits until all files are durable.
  bool finish(const StateSource& state, const Metrics& metrics = {});
  /// Runs the training loop; with `save_on_exception`, rank 0 saves what `state` gives when an exception leaves it, and
  /// the exception goes on.
  void guard(const StateSource& state, const std::function<void()>& body);
  /// One of `save_on_signals` came and the state was saved: leave the loop.
  bool interrupted() const;
  /// Until the file in flight is durable. Every rank calls it. Throws CheckpointError when it could not be written.
  void wait();

  // --- what there is
  const Config& config() const;
  const std::optional<std::string>& monitor() const { return config().monitor; }
  int save_top_k() const { return config().save_top_k; }
  /// Absolute. Every rank must call it first together when Config::dirpath is empty.
  const std::filesystem::path& dirpath() const;
  const std::filesystem::path& best_model_path() const { return records().best.path; }
  /// Missing before the first file, and without `monitor`.
  std::optional<double> best_model_score() const;
  const std::filesystem::path& kth_best_model_path() const { return records().kth.path; }
  /// The score that a new one must beat; infinite before there are k.
  double kth_value() const { return records().kth.score; }
  const std::vector<ScoredCheckpoint>& best_k_models() const { return records().best_k; }
  const std::filesystem::path& last_model_path() const { return records().last_path; }
  std::optional<double> current_score() const { return records().current_score; }
  const CheckpointRecords& records() const;
  /// Paths and scores as YAML, best first; empty: best_k_models.yaml in dirpath(). Rank 0 alone writes.
  void write_yaml(const std::filesystem::path& path = {}) const;

  // --- for other helpers
  /// Borrowed; told until it is removed.
  void add_observer(CheckpointObserver& observer);
  /// Kept alive, for observers that may be done before this object.
  void add_observer(std::shared_ptr<CheckpointObserver> observer);
  void remove_observer(CheckpointObserver& observer);
  /// Never removes this file: one that a run was resumed from, or that is being read. After `release` it is removed as
  /// any other; what should have gone meanwhile goes then.
  void protect(const std::filesystem::path& path);
  void release(const std::filesystem::path& path);

  /// Paths, scores and counters. Loading the state of another folder or metric keeps only the paths of the best and the
  /// last file, with a warning.
  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fabric
