#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include <fabric/base/value.h>

namespace fabric::checkpoint {

/// The index of weights that lie in several files, as Hugging Face's libraries write it
/// (`model.safetensors.index.json`): `path` itself, or the one in the folder `path`. A folder with nothing but
/// `model.safetensors` gives that file. Nothing where there is none; throws CheckpointError where there are several.
std::optional<std::filesystem::path> find_weight_map(const std::filesystem::path& path);

/// The files that it names, in the order of their names, whether they are there or not; of the only file that itself.
/// Throws CheckpointCorrupt for what is no such index.
std::vector<std::filesystem::path> weight_map_files(const std::filesystem::path& index);

/// Reads one of the files.
using ReadWeights = std::function<Value(const std::filesystem::path&)>;
/// A flat map of the tensors that the index lists, in its order. Throws CheckpointCorrupt where files or tensors are
/// missing, naming them, and where one tensor lies in two files. Tensors that the index does not list are passed over,
/// with a warning.
Value read_weight_map(const std::filesystem::path& index, const ReadWeights& read);

}  // namespace fabric::checkpoint
