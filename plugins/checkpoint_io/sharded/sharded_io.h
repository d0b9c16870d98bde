#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include <fabric/base/value.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "plugins/checkpoint_io/mapped_file.h"

namespace fabric::checkpoint {

/// A folder of safetensors files, one per rank, and an index that is written last (fabric/docs/checkpoints.md).
std::shared_ptr<CheckpointIO> make_sharded_io();

/// Whether `path` is such a folder, or was one until a kill interrupted the save that was to replace it.
bool looks_sharded(const std::filesystem::path& path);
/// Where it lies: `path`, or what such a kill left.
std::filesystem::path sharded_folder(const std::filesystem::path& path);
/// Its tree; tensors are still in the files, which are added to `files`. Throws CheckpointError or CheckpointCorrupt.
/// `verify`: checksums are compared; those of tensors when a whole chunk is read.
Value open_sharded(const std::filesystem::path& path, bool verify = true,
                   std::vector<std::shared_ptr<MappedFile>>* files = nullptr);

/// Writes such folders. At most one save of a path at a time, also by other processes.
FABRIC_API std::unique_ptr<PartWriter> make_shard_writer();

/// Where the checkpoint that a save replaces lies until the new one has its name, on file systems that cannot exchange
/// two names.
std::filesystem::path replaced_sharded(const std::filesystem::path& path);

}  // namespace fabric::checkpoint
