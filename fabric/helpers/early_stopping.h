#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include <fabric/config.h>
#include <fabric/helpers/metrics.h>
#include <fabric/helpers/peers.h>
#include <fabric/state/state.h>

namespace fabric {

/// Says when a metric stopped improving, or reached a bound, and training may end. Call `check` after each validation
/// and ask `stopped()` in the loop's condition.
///
/// On several ranks every rank calls `check`, and all get the same answer: each judges the number it was given, and one
/// that wants to stop stops all. Give every rank the same number (MeanMetric, Accuracy or fabric.all_reduce do), or the
/// first difference is warned of. A metric that is missing on some ranks only is an error on every rank.
class FABRIC_API EarlyStopping : public Stateful {
 public:
  /// Why it stopped; the numbers are those of Lightning's `EarlyStoppingReason`.
  enum class Reason {
    not_stopped = 0,
    stopping_threshold = 1,
    divergence_threshold = 2,
    patience_exhausted = 3,
    non_finite_metric = 4,
  };
  /// Where in the loop a check is made. `any`: no matter what check_on_train_epoch_end says.
  enum class Moment { any, validation_end, train_epoch_end };

  struct Config {
    /// The metric's name; must be given.
    std::string monitor = {};
    /// An improvement is larger than |min_delta|; one of exactly that is none.
    double min_delta = 0;
    /// This many checks in a row without an improvement are enough to stop. 0 is as 1.
    std::int64_t patience = 3;
    /// Logs improvements and why it stopped.
    bool verbose = false;
    /// "min": smaller is better; "max": larger is.
    std::string mode = "min";
    /// A metric that is missing is an error; off: such a check is left out.
    bool strict = true;
    /// NaN and infinity stop at once.
    bool check_finite = true;
    /// Better than this stops at once.
    std::optional<double> stopping_threshold = {};
    /// Worse than this stops at once.
    std::optional<double> divergence_threshold = {};
    /// For loops that name the moment of each check: true counts those at the end of a training epoch, false and
    /// empty those at the end of a validation.
    std::optional<bool> check_on_train_epoch_end = {};
    /// Logs on rank 0 only.
    bool log_rank_zero_only = false;
    FABRIC_FIELDS(Config, monitor, min_delta, patience, verbose, mode, strict, check_finite, stopping_threshold,
                  divergence_threshold, check_on_train_epoch_end, log_rank_zero_only)
    void validate() const;
  };

  /// Throws ConfigError for settings that cannot be.
  explicit EarlyStopping(Config config, Peers peers = {});

  /// Judges the monitored metric and returns stopped(). `epoch` is what stopped_epoch() will say; without one, checks
  /// are counted from 0. Does nothing once stopped, and for a moment that the settings leave out; call it in no sanity
  /// check. Throws MisuseError, on every rank, for a metric that is missing while `strict`.
  bool check(const Metrics& metrics, int epoch = -1, Moment moment = Moment::any);

  bool stopped() const { return reason_ != Reason::not_stopped; }
  /// -1 until it stopped.
  int stopped_epoch() const { return stopped_epoch_; }
  Reason reason() const { return reason_; }
  /// What the last check found, in words; empty before the first and after one that found nothing to tell.
  const std::string& message() const { return message_; }
  /// The best metric so far; infinity, on the bad side, before the first. A phase does not reset it.
  double best_score() const { return best_score_; }
  /// Checks since the last improvement, or since the phase began.
  std::int64_t wait_count() const { return wait_count_; }
  std::int64_t patience() const { return config_.patience; }
  const Config& config() const { return config_; }
  const Peers& peers() const { return peers_; }
  /// Goes on after a stop: forgets it and the checks waited, keeps the best score.
  void resume();

  // --- phases, for a FinetuningScheduler
  /// While it is not the last phase, patience that runs out completes the phase instead of stopping. Initially true.
  bool final_phase() const { return final_phase_; }
  void set_final_phase(bool is_final) { final_phase_ = is_final; }
  /// Stays true, whatever later checks find, until `reset_phase`.
  bool phase_complete() const { return phase_complete_; }
  void set_phase_complete(bool complete) { phase_complete_ = complete; }
  /// A new phase begins: not complete, nothing waited.
  void reset_phase();

  /// All of the above but the settings, of which only `patience` is part: it is restored over the constructor's.
  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  // What one rank finds, before the ranks have agreed; higher kinds win.
  struct Finding {
    enum Kind { missing, waiting, improved, phase_complete, stop } kind = missing;
    Reason reason = Reason::not_stopped;
    double value = 0;
    std::string message = {};
  };
  bool better(double value, double than) const { return config_.mode == "min" ? value < than : value > than; }
  bool improves(double value) const;
  Finding judge(const Metrics& metrics) const;
  Finding agree(Finding mine);
  void take(const Finding& finding, int epoch);
  [[noreturn]] void throw_missing(const Metrics& metrics) const;

  Config config_;
  Peers peers_;
  double best_score_;
  std::int64_t wait_count_ = 0;
  std::int64_t checks_ = 0;
  int stopped_epoch_ = -1;
  Reason reason_ = Reason::not_stopped;
  std::string message_;
  bool final_phase_ = true;
  bool phase_complete_ = false;
  bool warned_ = false;
};

}  // namespace fabric
