#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include <fabric/base/value.h>

#include "plugins/checkpoint_io/mapped_file.h"

namespace fabric::checkpoint {

/// A format of the library: what its readers are told.
struct ReadsFiles {
  bool verify = true;
};

/// A checkpoint that is gone through piece by piece. Its tensors are still in the files, and only the sums of what is
/// beside them have been compared.
struct OpenCheckpoint {
  Value value;
  std::vector<std::shared_ptr<MappedFile>> files;
};
/// Of any kind that `CheckpointIO::load` reads. Throws as that does.
OpenCheckpoint open_checkpoint(const std::filesystem::path& path);

/// What a file is, seen from its bytes: PyTorch's, else safetensors. Throws CheckpointCorrupt where it is neither.
bool is_torch_file(const MappedFile& file);

}  // namespace fabric::checkpoint
