#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <fabric/base/value.h>

namespace fabric::checkpoint {

/// Bytes in a file of the checkpoint.
struct ByteRange {
  std::size_t file;  // in Catalog::files
  std::uint64_t begin, end;
};

/// A tensor, and the boxes in which it is stored: one, or those of the shards.
struct CatalogTensor {
  struct Box {
    ByteRange bytes;
    std::vector<std::int64_t> offsets, shape;
  };
  std::string name, type;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;
  /// None where its bytes do not lie in one place (sparse, or turned over while reading). In a folder of Python's the
  /// bytes are those of the archive that holds the box.
  std::vector<Box> boxes;
};

/// Bytes of which the checkpoint holds a checksum, or should.
struct CheckedRange {
  std::string name;  // "the tensor 'w'"
  ByteRange bytes;
  std::optional<std::uint32_t> sum;
  bool zip = false;  // the sum is a CRC-32, not a CRC-32C
};

/// What a checkpoint holds and where, without reading the bytes of tensors.
struct Catalog {
  std::string format;  // "safetensors", "torch", "sharded", "dcp" or "huggingface"
  std::vector<std::filesystem::path> files;
  std::vector<CatalogTensor> tensors;
  std::vector<CheckedRange> ranges;
  Value values;  // null where faults make it unreadable
  std::vector<std::string> notes;
  /// What is wrong already.
  std::vector<std::string> faults;
};

/// Throws CheckpointError or CheckpointCorrupt where there is nothing to list.
Catalog read_catalog(const std::filesystem::path& path);

}  // namespace fabric::checkpoint
