#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

#include <fabric/base/value.h>

namespace fabric {

/// Writes weights as Hugging Face's libraries read them: a new folder with `model-00001-of-0000N.safetensors`, … and
/// `model.safetensors.index.json`. Tensors come in their order, as many to a file as fit into `most_bytes` of tensors;
/// one that is larger has a file of its own. The folder appears when all of it is durable, or not at all. Returns the
/// number of files. Throws CheckpointError where a value is no tensor, since that format holds nothing else, and where
/// `folder` holds something already.
FABRIC_API std::size_t save_weight_shards(const Value& weights, const std::filesystem::path& folder,
                                          std::uint64_t most_bytes);

}  // namespace fabric
