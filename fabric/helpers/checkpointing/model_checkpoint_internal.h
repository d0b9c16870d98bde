#pragma once
// Inside of ModelCheckpoint, shared by its sources. Not installed API: nothing but they include it.

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <fabric/helpers/checkpointing/checkpoint_target_internal.h>
#include <fabric/helpers/checkpointing/interrupt_signals_internal.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

namespace fabric {

struct ModelCheckpoint::Impl {
  using Path = std::filesystem::path;
  using Clock = std::chrono::steady_clock;

  /// Why something may be saved.
  enum class Cause {
    epoch,      // the epoch trigger
    step,       // the step or time trigger, perhaps late
    train_end,  // nothing but `last`
    emergency,  // a signal or an exception: a file beside the ranked ones
  };
  /// What one save does to the folder. Made on rank 0, the same on every rank.
  struct Plan {
    Path file;                 // empty: `last` alone
    Path last;                 // empty: stays as it is
    bool ranked = false;       // `file` is one of the best k
    bool fresh = false;        // nothing was there under the name of `file`
    std::vector<Path> gone;    // of the best k, somebody removed them
    std::vector<Path> remove;  // once the new file is durable
    const Path& first() const { return file.empty() ? last : file; }
  };
  /// A save that can still fail.
  struct Pending {
    CheckpointRecords before;
    CheckpointEvent event;
  };

  Impl(Config config, Peers peers, CheckpointTarget target, const Path& default_folder);

  // --- triggers (model_checkpoint.cpp)
  void place_step(const Position& at);
  void place_epoch(std::int64_t& count, const Position& at);
  bool epoch_due() const;
  bool step_due() const;
  /// Whether time is up, and which signal came: the same answer on every rank. `everybody`: all ranks are sure to ask.
  struct Agreed {
    bool time = false;
    int signal = 0;
  };
  Agreed agree(bool everybody);
  bool save_due(const Metrics& metrics, const StateSource& state, bool epoch_trigger);
  bool save_interrupted(int signal, const Metrics& metrics, const StateSource& state);

  // --- saving (model_checkpoint_save.cpp)
  /// True when something was saved.
  bool save(Cause cause, const Metrics& metrics, const StateSource& state);
  /// Without another rank's help.
  void save_alone(const StateSource& state);
  /// The metric on each rank, by rank; empty when it is missing on any.
  std::vector<double> gather_scores(const Metrics& metrics) const;
  Plan plan(Cause cause, const std::vector<double>& scores, const Metrics& metrics);
  Path name_file(const Metrics& metrics, int version, const std::string& pattern) const;
  CheckpointEvent enter(const Plan& plan, std::optional<double> score);
  void write(const Plan& plan, const StateSource& state, bool at_once);
  void arrange(const Plan& plan) const;
  bool may_remove(const Path& path, const Plan& plan);
  State narrowed(State state) const;
  void undo(const Pending& pending);
  /// Learns how the file in flight fared; `wait` or only when it has ended.
  void settle();
  void settle_if_ended();
  void look_at_folder();

  const Config config;
  const Peers peers;
  const CheckpointTarget target;
  Path folder;
  CheckpointRecords records;
  std::vector<CheckpointObserver*> observers;
  std::vector<std::shared_ptr<CheckpointObserver>> owned_observers;
  std::set<Path> protected_paths;
  std::set<Path> postponed;  // should have been removed while they were protected

  // Where the loop is.
  std::int64_t epoch = 0, step = 0;
  std::int64_t validations = 0, train_epochs = 0;  // calls, or the place that the loop gave
  bool counts_steps = false;                       // `step` is called
  bool validated = false;
  bool deferred = false;
  bool loaded = false, looked = false, warned_about_metric = false;
  Clock::time_point last_time = Clock::now();

  std::unique_ptr<InterruptSignals> signals;
  int interrupted_by = 0;

  std::optional<Pending> pending;
  std::shared_ptr<SaveInProgress> saving;  // last, so that it ends before what its work uses
};

}  // namespace fabric
