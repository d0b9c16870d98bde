#include "plugins/checkpoint_io/sharded/sharded_index.h"

#include <unordered_set>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/integrity/sealed_text.h"
#include "plugins/checkpoint_io/names.h"
#include "plugins/checkpoint_io/safetensors/safetensors_header.h"
#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric::checkpoint {
namespace {

constexpr const char* kFormatName = "torchfabric-sharded";
constexpr std::int64_t kShardedVersion = 3, kVersionWithoutNames = 2, kVersionWithoutSums = 1;
constexpr std::string_view kIndexSumMark = "\"crc32c\":\"";
constexpr std::size_t kMostChunks = 4096;  // of one tensor: each is compared with each
constexpr std::size_t kMostSizes = 64;

[[noreturn]] void wrong_index(const std::string& why) { throw CheckpointCorrupt("its index " + why); }

const Tree& index_field(const Tree& tree, const char* key) {
  const Tree* found = tree.find(key);
  if (!found) wrong_index(std::string("has no '") + key + "'");
  return *found;
}

const std::string& index_text(const Tree& value, const char* key) {
  if (!value.is_string()) wrong_index(std::string("has ") + value.kind() + " as '" + key + "' instead of a string");
  return value.as_string();
}

const Tree::List& index_list(const Tree& value, const std::string& key) {
  if (!value.is_list()) wrong_index("has " + std::string(value.kind()) + " as '" + key + "' instead of a list");
  return value.as_list();
}

std::int64_t index_number(const Tree& value, const std::string& key) {
  if (!value.is_int() || value.as_int() < 0)
    wrong_index("has something other than a whole number from 0 in '" + key + "'");
  return value.as_int();
}

template <class Numbers = std::vector<std::int64_t>>
Numbers index_sizes(const Tree& value, const std::string& key) {
  Numbers out;
  for (const auto& item : index_list(value, key)) out.push_back(index_number(item, key));
  if (out.size() > kMostSizes) wrong_index("has more than 64 dimensions in '" + key + "'");
  return out;
}

Tree sizes_tree(at::IntArrayRef sizes) { return Tree::List(sizes.begin(), sizes.end()); }

std::int64_t volume_of(at::IntArrayRef shape) {
  std::int64_t product = 1;
  for (auto size : shape) product *= size;
  return product;
}

bool chunks_overlap(const StoredChunk& a, const StoredChunk& b) {
  for (std::size_t d = 0; d < a.shape.size(); ++d)
    if (a.offsets[d] >= b.offsets[d] + b.shape[d] || b.offsets[d] >= a.offsets[d] + a.shape[d]) return false;
  return true;
}

// A list: the file, offsets, shape; from version 2 on, the checksum; in version 3, perhaps its name in the file.
StoredChunk parse_chunk(const Tree& item, const std::string& where, const ShardedIndex& index, bool has_names) {
  const auto& parts = index_list(item, where);
  if (parts.size() != (index.has_sums ? 4u : 3u) && !(has_names && parts.size() == 5))
    wrong_index("has a chunk of '" + where + "' that is not a file, offsets, a shape" +
                (index.has_sums ? " and a checksum" : ""));
  StoredChunk chunk{static_cast<std::size_t>(index_number(parts[0], where)), index_sizes<ChunkDims>(parts[1], where),
                    index_sizes<ChunkDims>(parts[2], where)};
  if (chunk.file >= index.files.size())
    wrong_index("puts a chunk of '" + where + "' into a file that it does not list");
  if (!index.has_sums) return chunk;
  chunk.crc32c = sum_number(index_text(parts[3], "checksum"));
  if (!chunk.crc32c) wrong_index("has a checksum of '" + where + "' that is not eight hexadecimal digits");
  if (parts.size() == 5) chunk.stored_as = index_text(parts[4], "name in the file");
  return chunk;
}

StoredEntry parse_stored(const Tree& tree, const ShardedIndex& index, bool has_names) {
  StoredEntry entry;
  entry.name = index_text(index_field(tree, "name"), "name");
  const std::string where = entry.name.substr(0, 200);
  auto type = safetensors_type(index_text(index_field(tree, "dtype"), "dtype"));
  if (!type) wrong_index("gives '" + where + "' an unknown type");
  entry.type = *type;
  entry.shape = index_sizes(index_field(tree, "shape"), where);
  if (!checked_bytes(entry.shape, c10::elementSize(entry.type)))
    wrong_index("gives '" + where + "' an impossible shape");
  for (const auto& item : index_list(index_field(tree, "chunks"), where))
    entry.chunks.push_back(parse_chunk(item, where, index, has_names));
  if (auto why = why_not_whole(entry.shape, entry.chunks); !why.empty())
    wrong_index("does not describe '" + where + "' as a whole: " + why);
  return entry;
}

}  // namespace

std::string why_not_whole(const std::vector<std::int64_t>& shape, const std::vector<StoredChunk>& chunks) {
  if (chunks.size() > kMostChunks) return "it has more than " + std::to_string(kMostChunks) + " chunks";
  std::int64_t covered = 0;
  for (const auto& chunk : chunks) {
    if (chunk.offsets.size() != shape.size() || chunk.shape.size() != shape.size())
      return "a chunk has another number of dimensions";
    for (std::size_t d = 0; d < shape.size(); ++d)
      if (chunk.offsets[d] > shape[d] || chunk.shape[d] > shape[d] - chunk.offsets[d])
        return "a chunk lies outside of it";
    for (const auto& other : chunks)
      if (&other < &chunk && chunks_overlap(other, chunk)) return "two chunks overlap";
    covered += volume_of(chunk.shape);
  }
  return covered == volume_of(shape) ? "" : "chunks are missing";
}

std::unordered_set<std::string_view> ShardedIndex::names_in_files() const {
  std::unordered_set<std::string_view> names;
  for (const auto& entry : tensors)
    for (const auto& chunk : entry.chunks) names.insert(entry.name_in_file(chunk));
  return names;
}

std::string ShardedIndex::to_json() const {
  bool has_names = false;
  Tree::List files_tree, tensors_tree;
  for (const auto& file : files) files_tree.push_back(Tree::Map{{"name", file.name}, {"bytes", file.bytes}});
  for (const auto& entry : tensors) {
    Tree::List chunks;
    for (const auto& chunk : entry.chunks) {
      Tree::List item{chunk.file, sizes_tree(chunk.offsets), sizes_tree(chunk.shape),
                      sum_text(chunk.crc32c.value_or(0))};
      if (!chunk.stored_as.empty()) item.push_back(chunk.stored_as), has_names = true;
      chunks.push_back(std::move(item));
    }
    tensors_tree.push_back(Tree::Map{{"name", entry.name},
                                     {"dtype", std::string(*safetensors_name(entry.type))},
                                     {"shape", sizes_tree(entry.shape)},
                                     {"chunks", std::move(chunks)}});
  }
  // What stands before the index's own sum has no such mark in it.
  Tree::Map root{{"format", kFormatName},
                 {"version", has_names ? kShardedVersion : kVersionWithoutNames},
                 {"crc32c", std::string(kSumDigits, '0')},
                 {"id", id},
                 {"files", std::move(files_tree)},
                 {"per_rank", Tree::List(per_rank.begin(), per_rank.end())},
                 {"tensors", std::move(tensors_tree)},
                 {"tree", tree}};
  std::string text = write_json_for_file(root);
  seal(text, 0, kIndexSumMark);
  return text;
}

ShardedIndex ShardedIndex::parse(std::string_view text, bool verify) {
  Tree root = read_json_of_file(text, "the index");
  const Tree* format = root.find("format");
  if (!format || !format->is_string() || format->as_string() != kFormatName)
    wrong_index(std::string("is none of a sharded checkpoint: it does not say \"format\": \"") + kFormatName + "\"");
  const auto version = index_number(index_field(root, "version"), "version");
  if (version < kVersionWithoutSums || version > kShardedVersion)
    throw CheckpointError("it has version " + std::to_string(version) +
                          " of the sharded format; this library reads versions " + std::to_string(kVersionWithoutSums) +
                          " to " + std::to_string(kShardedVersion));
  ShardedIndex index;
  index.has_sums = version != kVersionWithoutSums;
  if (index.has_sums && verify)
    if (auto why = why_unsealed(text, kIndexSumMark); !why.empty()) wrong_index("is damaged: " + why);
  index.id = index_text(index_field(root, "id"), "id");
  std::unordered_set<std::string> files;
  for (const auto& item : index_list(index_field(root, "files"), "files")) {
    index.files.push_back({index_text(index_field(item, "name"), "name"),
                           static_cast<std::uint64_t>(index_number(index_field(item, "bytes"), "bytes"))});
    if (!is_plain_name(index.files.back().name)) wrong_index("names a file outside of the folder");
    if (!files.insert(index.files.back().name).second) wrong_index("names a file twice");
  }
  for (const auto& item : index_list(index_field(root, "per_rank"), "per_rank"))
    index.per_rank.push_back(index_text(item, "per_rank"));
  std::unordered_set<std::string> names;
  for (const auto& item : index_list(index_field(root, "tensors"), "tensors")) {
    index.tensors.push_back(parse_stored(item, index, version == kShardedVersion));
    if (!names.insert(index.tensors.back().name).second)
      wrong_index("has the tensor '" + index.tensors.back().name.substr(0, 200) + "' twice");
  }
  index.tree = index_field(root, "tree");
  return index;
}

}  // namespace fabric::checkpoint
