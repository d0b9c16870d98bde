#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include <fabric/base/value.h>

#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric::checkpoint {

/// The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors' bytes one after another.
/// What is not a tensor lives in the header's `__metadata__`, key "fabric".
void write_safetensors(const Value& checkpoint, const std::filesystem::path& path);

/// The same file out of its parts: tensors by name, and the tree that belongs into the metadata; without one, a file as
/// other programs write it.
void write_safetensors_file(std::vector<NamedTensor> tensors, std::optional<Tree> tree,
                            const std::filesystem::path& path);

/// What such a file holds, its tensors still in the mapping.
struct SafetensorsContent {
  std::vector<NamedTensor> tensors;
  std::optional<Tree> structure;  // missing in another program's file
};
SafetensorsContent read_safetensors_content(const std::shared_ptr<MappedFile>& file);

/// A file that another program wrote comes back as a flat map of its tensors. Throws CheckpointCorrupt saying what is
/// wrong.
Value read_safetensors(const std::shared_ptr<MappedFile>& file);

bool looks_like_safetensors(const MappedFile& file);

}  // namespace fabric::checkpoint
