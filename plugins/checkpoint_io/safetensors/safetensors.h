#pragma once

#include <memory>

#include <fabric/base/value.h>

#include "plugins/checkpoint_io/mapped_file.h"

namespace fabric::checkpoint {

/// The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors' bytes one after another.
/// What is not a tensor lives in the header's `__metadata__`, key "fabric".
void write_safetensors(const Value& checkpoint, const std::filesystem::path& path);

/// A file that another program wrote comes back as a flat map of its tensors. Throws CheckpointCorrupt saying what is
/// wrong.
Value read_safetensors(const std::shared_ptr<MappedFile>& file);

bool looks_like_safetensors(const MappedFile& file);

}  // namespace fabric::checkpoint
