#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <fabric/base/value.h>

namespace fabric {

/// A checkpoint that was kept, and the value it was kept for.
struct ScoredCheckpoint {
  std::filesystem::path path;
  double score = std::numeric_limits<double>::quiet_NaN();
  bool operator==(const ScoredCheckpoint&) const = default;
};

/// Which files a run has kept, and the rule by which scores rank. A plain value: a copy made before a save undoes it.
struct FABRIC_API CheckpointRecords {
  std::vector<ScoredCheckpoint> best_k;  // in the order they were saved
  ScoredCheckpoint best;                 // an empty path: none yet
  ScoredCheckpoint kth;                  // the one that goes next, once there are k; an infinite score before
  std::filesystem::path last_path;
  std::filesystem::path newest_path;  // of any kind
  std::optional<double> current_score;
  std::int64_t saved_step = 0;  // of the newest file; no file is worth writing before the first step

  /// `mode` is "min" or "max".
  explicit CheckpointRecords(const std::string& mode = "min");
  /// -1, fewer than k, or strictly better than the kth. NaN is better than nothing.
  bool accepts(double score, int k) const;
  /// Those that must go for a new one to find room, worst first, ties: the earliest.
  std::vector<std::filesystem::path> evict_for_new(int k);
  /// Adds a file; NaN counts as infinitely bad.
  void admit(const std::filesystem::path& path, double score, int k);
  /// Drops one that is no longer there and ranks anew.
  void drop(const std::filesystem::path& path, int k);

  Value state_dict() const;
  /// Throws CheckpointKeyError for something else.
  void load_state_dict(const Value& state, int k);

 private:
  bool better(double a, double b) const { return lower_ ? a < b : a > b; }
  void rank(int k);
  std::size_t worst() const;
  bool lower_;
};

}  // namespace fabric
