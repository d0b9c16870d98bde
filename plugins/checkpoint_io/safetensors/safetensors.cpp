#include "plugins/checkpoint_io/safetensors/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "plugins/checkpoint_io/safetensors/safetensors_header.h"
#include "plugins/checkpoint_io/structure.h"

namespace fabric::checkpoint {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr int kLargestPower = 6;  // 64 bytes

// The format allows no padding between tensors. Sorted by the largest power of two that divides their size, each begins
// at a multiple of that power, hence of its element size.
void sort_for_alignment(std::vector<NamedTensor>& tensors) {
  auto power = [](const NamedTensor& entry) {
    return std::min(std::countr_zero(entry.tensor.nbytes()), kLargestPower);
  };
  std::stable_sort(tensors.begin(), tensors.end(), [&](const auto& a, const auto& b) { return power(a) > power(b); });
}

std::uint64_t header_length(const MappedFile& file) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  return length;
}

Tree parse_structure(const std::string& text) {
  Tree tree = read_json_of_file(text, "the structure");
  const Tree* version = tree.find("version");
  const Tree* content = tree.find("tree");
  if (!version || !version->is_int() || !content) throw CheckpointCorrupt("the structure has no 'version' and 'tree'");
  if (version->as_int() != kFormat)
    throw CheckpointError("the file has version " + std::to_string(version->as_int()) +
                          " of the layout; this library reads version " + std::to_string(kFormat));
  return *content;
}

// Of a type that LibTorch has no numbers for, as the file holds them.
Value raw_bytes(const TensorEntry& entry, std::byte* data, const std::shared_ptr<MappedFile>& file) {
  const std::uint64_t size = entry.end - entry.begin;
  Value::List shape(entry.shape.begin(), entry.shape.end());
  return Value::Map{{"dtype", entry.type_name},
                    {"shape", std::move(shape)},
                    {"bytes", tensor_at(data, size, {static_cast<std::int64_t>(size)}, at::kByte, file)}};
}

}  // namespace

void write_safetensors(const Value& checkpoint, const std::filesystem::path& path) {
  Structure structure = flatten(checkpoint);
  write_safetensors_file(std::move(structure.tensors), std::move(structure.tree), path);
}

void write_safetensors_file(std::vector<NamedTensor> tensors, std::optional<Tree> tree,
                            const std::filesystem::path& path) {
  sort_for_alignment(tensors);
  std::optional<std::string> structure;
  if (tree) structure = write_json_for_file(Tree::Map{{"version", kFormat}, {"tree", std::move(*tree)}});
  std::string header = make_header(tensors, structure);
  AtomicFile file(path, as_error<CheckpointError>);
  file.write(header);
  for (const auto& entry : tensors)
    for_each_piece(entry.tensor, [&](const void* data, std::size_t size) { file.write(data, size); });
  file.commit();
}

bool looks_like_safetensors(const MappedFile& file) {
  return file.size() > kLengthBytes && static_cast<char>(file.data()[kLengthBytes]) == '{';
}

namespace {

struct OpenFile {
  SafetensorsHeader header;
  std::uint64_t start;  // of the data
};

OpenFile open_header(const MappedFile& file) {
  if (file.size() < kLengthBytes)
    throw CheckpointCorrupt("it has " + std::to_string(file.size()) + " bytes, too few for a header");
  std::uint64_t length = header_length(file);
  if (length > kMaxHeader || length > file.size() - kLengthBytes)
    throw CheckpointCorrupt("it claims a header of " + std::to_string(length) + " bytes, but has " +
                            std::to_string(file.size()) + " in all: it is truncated or no safetensors file");
  std::uint64_t start = kLengthBytes + length;
  return {parse_header(file.text(kLengthBytes, length), file.size() - start), start};
}

}  // namespace

SafetensorsContent read_safetensors_content(const std::shared_ptr<MappedFile>& file) {
  auto [header, start] = open_header(*file);
  SafetensorsContent content;
  for (const auto& entry : header.entries) {
    if (!entry.type) throw CheckpointCorrupt("the entry '" + entry.name + "' has a type that is never written");
    content.tensors.push_back({entry.name, tensor_at(file->data() + start + entry.begin, entry.end - entry.begin,
                                                     entry.shape, *entry.type, file)});
  }
  if (header.structure) content.structure = parse_structure(*header.structure);
  return content;
}

Value read_safetensors(const std::shared_ptr<MappedFile>& file) {
  auto [header, start] = open_header(*file);
  file->populate();
  std::unordered_map<std::string, at::Tensor> tensors;
  Value::Map flat;
  for (const auto& entry : header.entries) {
    if (!entry.type) {
      if (header.structure) throw CheckpointCorrupt("the entry '" + entry.name + "' has a type that is never written");
      flat.append(entry.name, raw_bytes(entry, file->data() + start + entry.begin, file));
      continue;
    }
    at::Tensor tensor =
        tensor_at(file->data() + start + entry.begin, entry.end - entry.begin, entry.shape, *entry.type, file);
    if (header.structure)
      tensors.emplace(entry.name, std::move(tensor));
    else
      flat.append(entry.name, std::move(tensor));
  }
  if (!header.structure) return flat;
  return put_together(parse_structure(*header.structure), tensors);
}

}  // namespace fabric::checkpoint
