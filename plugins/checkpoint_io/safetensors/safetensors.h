#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <fabric/base/value.h>

#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/safetensors/safetensors_header.h"
#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric::checkpoint {

/// The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors' bytes one after another.
/// What is not a tensor lives in the header's `__metadata__`, key "fabric".
void write_safetensors(const Value& checkpoint, const std::filesystem::path& path);

/// The same file out of its parts: tensors by name, and the tree that belongs into the metadata; without one, a file as
/// other programs write it, which holds no checksums either. Returns the checksum of each tensor's bytes.
std::unordered_map<std::string, std::uint32_t> write_safetensors_file(std::vector<NamedTensor> tensors,
                                                                      std::optional<Tree> tree,
                                                                      const std::filesystem::path& path);

/// What such a file holds, its tensors still in the mapping. Their bytes are not compared with the checksums yet.
struct SafetensorsContent {
  struct Item {
    std::string name;
    at::Tensor tensor;
    std::uint64_t begin;  // in the file
    std::optional<std::uint32_t> crc32c;
  };
  std::vector<Item> tensors;
  std::optional<Tree> structure;  // missing in another program's file
  bool has_sums = false;
};
SafetensorsContent read_safetensors_content(const std::shared_ptr<MappedFile>& file, bool verify);

/// A file that another program wrote comes back as a flat map of its tensors. Throws CheckpointCorrupt saying what is
/// wrong. `verify`: checksums, where the file has them, are compared, of tensors unless the file is only looked at.
Value read_safetensors(const std::shared_ptr<MappedFile>& file, bool verify);

/// The header of such a file, and where its data begins.
struct OpenSafetensors {
  SafetensorsHeader header;
  std::uint64_t start;
};
OpenSafetensors open_safetensors(const MappedFile& file, bool verify);
/// Reads the header from the disk, and nothing of the data behind it: for a file of which little may be wanted.
void fetch_header(const MappedFile& file);

bool looks_like_safetensors(const MappedFile& file);

}  // namespace fabric::checkpoint
