#pragma once

#include <filesystem>
#include <string>

namespace fabric::checkpoint {

[[noreturn]] void shard_failure(const std::filesystem::path& path, const std::string& why);

/// The folder `.NAME.partial` beside a checkpoint, in which a save gathers its files before they take the checkpoint's
/// name. One save of a path at a time holds it, also among processes; what a kill left of it goes with the next save.
class SaveFolder {
 public:
  /// Throws CheckpointError where `path` cannot become a checkpoint, or another save is at work there.
  explicit SaveFolder(const std::filesystem::path& path);
  SaveFolder(SaveFolder&& other) noexcept;
  /// Gives up the lock; the folder stays.
  ~SaveFolder();
  const std::filesystem::path& place() const { return place_; }
  /// The folder becomes the checkpoint at `path`, durably. Where the name is taken, the two are exchanged in one step
  /// and the old one is removed, so that the name leads to the old or to the new one at every moment.
  void move_to(const std::filesystem::path& path);

 private:
  std::filesystem::path place_;
  int lock_;
};

}  // namespace fabric::checkpoint
