#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <fabric/helpers/peers.h>

namespace fabric {
class Fabric;
}

namespace fabric {

/// A checkpoint that was not resumed from.
struct SkippedCheckpoint {
  std::filesystem::path path;
  std::string reason;
};

/// Where a run can go on.
struct ResumePoint {
  /// Empty: nowhere, the run starts anew.
  std::filesystem::path path;
  /// What is newer, or further in the run, and cannot be used.
  std::vector<SkippedCheckpoint> skipped;
  explicit operator bool() const { return !path.empty(); }
};

/// The whole checkpoint in `folder` and the folders in it that is furthest in the run: by the epoch and the step that
/// it holds (as `epoch`, `step` or Lightning's `global_step`, or in the state of a ModelCheckpoint), which copying the
/// folder does not change. Of files as far, and of those that hold neither, which come after all others, the newest by
/// the time it was written, then by the numbers in its name. A run that is started anew needs a folder of its own. Each
/// candidate is read and checked as `Fabric::load` would, so that a file that is truncated or was damaged is passed
/// over, as are links that lead nowhere and what a killed save left; rank 0 logs a warning about each. `keys` must be
/// at the file's top level, so that files of another kind are passed over, too. Every rank calls it and gets what rank
/// 0 found. A folder that does not exist holds nothing; one that cannot be read throws CheckpointError.
/// With a Fabric its `checkpoint_io` reads them, without one every format that the library knows.
FABRIC_API ResumePoint resume_latest(const std::filesystem::path& folder, const Fabric& fabric,
                                     const std::vector<std::string>& keys = {});
FABRIC_API ResumePoint resume_latest(const std::filesystem::path& folder, const Peers& peers = {},
                                     const std::vector<std::string>& keys = {});

}  // namespace fabric
