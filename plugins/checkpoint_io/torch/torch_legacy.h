#pragma once

#include <memory>

#include "plugins/checkpoint_io/torch/torch_reader.h"

namespace fabric::checkpoint {

/// PyTorch's format from before 1.6, which torch.save still writes when it is asked to.
bool looks_like_legacy_torch(const MappedFile& file);
CheckpointPart read_legacy_torch(const std::shared_ptr<MappedFile>& file, const std::string& key, bool whole);

}  // namespace fabric::checkpoint
