#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/config.h>
#include <fabric/facade/callback.h>
#include <fabric/state/state.h>

namespace fabric {

/// Stops a training whose loss jumps, and notes the batches to leave out of the next run. Call `check` after each step,
/// or add it to Fabric's callbacks and fire fabric.call("on_train_batch_end", {{"loss", loss}, {"batch_idx", index}}).
class FABRIC_API SpikeDetection : public Callback, public Stateful {
 public:
  struct Config {
    /// "min": smaller is better; "max": larger is.
    std::string mode = "min";
    /// The mean is taken over this many of the last values.
    int window = 10;
    /// The first values are never a spike.
    int warmup = 1;
    /// A spike differs from the mean by at least |atol|, if given, and by |rtol * mean|, if given.
    std::optional<double> atol = {};
    std::optional<double> rtol = 2.0;
    /// NaN and infinity are spikes. Off: NaN and an infinity for the better are none, and one for the worse is judged
    /// as any number is. In no case are they taken into the mean.
    bool finite_only = true;
    std::filesystem::path exclude_batches_path = "skip_batches.json";
    FABRIC_FIELDS(Config, mode, window, warmup, atol, rtol, finite_only, exclude_batches_path)
    void validate() const;
  };
  explicit SpikeDetection(Config config);
  SpikeDetection() : SpikeDetection(Config{}) {}
  SpikeDetection(const SpikeDetection&) = delete;

  /// Every rank calls it. Losses are taken into the ranks' means when none of them jumped, and with `finite_only` off
  /// when all are finite. When any rank's loss jumps, rank 0 adds `batch` and the one before it to the file, a JSON
  /// list of indices, and every rank throws TrainingSpike; rank 0 throws another Error instead when that file cannot be
  /// read or written.
  void check(Fabric& fabric, double loss, std::int64_t batch);
  /// Whether `loss` jumps, on this rank alone; takes it into the mean when it does not and is finite.
  bool is_spike(double loss);
  /// Of the values in the window; NaN while there is none.
  double mean() const;

  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  bool jumps(double loss);
  void take(double loss);
  void note(std::int64_t batch) const;
  Config config_;
  std::deque<double> window_;
  std::optional<double> last_;
  std::int64_t seen_ = 0;
};

/// The batches that such a file lists; none when it does not exist. Throws Error when it cannot be read.
FABRIC_API std::vector<std::int64_t> batches_to_skip(const std::filesystem::path& path = "skip_batches.json");

}  // namespace fabric
