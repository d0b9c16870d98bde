#pragma once

#include <filesystem>

#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

namespace fabric::checkpoint {

/// Whether `path` is a folder that Python wrote with torch.distributed.checkpoint.save.
bool looks_like_dcp(const std::filesystem::path& path);

enum class DcpUse {
  whole,  // everything will be read; a Python object is an error
  parts,  // some will: all is checked now, so that reading does not fail half way; objects are listed
  peek,   // no more than asked for; objects are listed
};
/// Its tree; tensors are still in the files. Throws CheckpointError or CheckpointCorrupt.
CheckpointPart open_dcp(const std::filesystem::path& folder, DcpUse use);

}  // namespace fabric::checkpoint
