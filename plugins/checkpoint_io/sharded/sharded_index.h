#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <c10/core/ScalarType.h>
#include <c10/util/SmallVector.h>

#include <fabric/base/tree.h>

namespace fabric::checkpoint {

inline constexpr const char* kIndexName = "index.json";

/// Offsets or sizes of a chunk, of which a checkpoint may have hundreds of thousands: few have memory of their own.
using ChunkDims = c10::SmallVector<std::int64_t, 4>;

/// A box of a tensor, and the shard that holds it.
struct StoredChunk {
  std::size_t file;
  ChunkDims offsets;
  ChunkDims shape;
  std::optional<std::uint32_t> crc32c = {};  // of its bytes; version 1 had none
  std::string stored_as = {};                // its name in the file, where that is not the tensor's
};

struct StoredEntry {
  std::string name;
  c10::ScalarType type;
  std::vector<std::int64_t> shape;
  std::vector<StoredChunk> chunks;
  const std::string& name_in_file(const StoredChunk& chunk) const {
    return chunk.stored_as.empty() ? name : chunk.stored_as;
  }
};

/// What `index.json` of a sharded checkpoint says (fabric/docs/checkpoints.md describes the format).
struct FABRIC_API ShardedIndex {
  struct File {
    std::string name;
    std::uint64_t bytes;
  };
  /// The same in every shard, so that one of another save is noticed.
  std::string id;
  std::vector<File> files;  // by rank
  std::vector<StoredEntry> tensors;
  std::vector<std::string> per_rank;  // entries of which each shard holds its own
  Tree tree;                          // all else, as in a checkpoint of one file
  bool has_sums = true;               // false: of version 1

  /// Names in the files of what is a part of these tensors; all else there is a rank's own.
  std::unordered_set<std::string_view> names_in_files() const;

  std::string to_json() const;
  /// Throws CheckpointCorrupt for text that is no index, or one whose chunks do not make up its tensors. `verify`: the
  /// checksum of the text itself is compared.
  static ShardedIndex parse(std::string_view text, bool verify = true);
};

/// Empty when the chunks lie inside of `shape`, do not overlap and fill it; else what is wrong.
std::string why_not_whole(const std::vector<std::int64_t>& shape, const std::vector<StoredChunk>& chunks);

}  // namespace fabric::checkpoint
