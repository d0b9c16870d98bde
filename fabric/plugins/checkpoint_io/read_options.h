#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

namespace fabric {

/// How a checkpoint is read.
struct CheckpointReadOptions {
  /// Compare the checksums in the file with its bytes, and throw CheckpointCorrupt where they differ. Off: for what can
  /// be had of a damaged file, or where something else vouches for the bytes.
  bool verify = true;
};

/// As `make_checkpoint_io(name)`, for `Fabric::Parts::checkpoint_io`. Formats of your own do what they do.
FABRIC_API std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name,
                                                            const CheckpointReadOptions& options);
/// As `load_checkpoint_part(path, key)`.
FABRIC_API CheckpointPart load_checkpoint_part(const std::filesystem::path& path, const std::string& key,
                                               const CheckpointReadOptions& options);

}  // namespace fabric
