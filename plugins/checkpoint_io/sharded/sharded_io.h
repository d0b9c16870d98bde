#pragma once

#include <filesystem>
#include <memory>

#include <fabric/base/value.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

namespace fabric::checkpoint {

/// A folder of safetensors files, one per rank, and an index that is written last (fabric/docs/checkpoints.md).
std::shared_ptr<CheckpointIO> make_sharded_io();

/// Whether `path` is such a folder, or was one until a kill interrupted the save that was to replace it.
bool looks_sharded(const std::filesystem::path& path);
/// Its tree; tensors are still in the files. Throws CheckpointError or CheckpointCorrupt.
Value open_sharded(const std::filesystem::path& path);

/// Writes such folders. At most one save of a path at a time, also by other processes.
FABRIC_API std::unique_ptr<PartWriter> make_shard_writer();

/// Where the checkpoint that a save replaces lies until the new one has its name, on file systems that cannot exchange
/// two names.
std::filesystem::path replaced_sharded(const std::filesystem::path& path);

}  // namespace fabric::checkpoint
