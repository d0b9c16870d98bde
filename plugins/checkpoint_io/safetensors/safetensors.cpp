#include "plugins/checkpoint_io/safetensors/safetensors.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include <ATen/Parallel.h>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "plugins/checkpoint_io/integrity/crc32c.h"
#include "plugins/checkpoint_io/integrity/sealed_text.h"
#include "plugins/checkpoint_io/structure.h"

namespace fabric::checkpoint {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr int kLargestPower = 6;  // 64 bytes
// What is summed up before it is written: the kernel then finds it in the cache. AtomicFile writes no less at once.
constexpr std::size_t kSumBlock = std::size_t{512} << 10;

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

// The sum of the tensor's bytes, each block of which is handed on while it is in the cache.
std::uint32_t sum_of_tensor(const at::Tensor& tensor, const std::function<void(const char*, std::size_t)>& hand_on) {
  std::uint32_t sum = 0;
  for_each_piece(tensor, [&](const void* data, std::size_t size) {
    auto* bytes = static_cast<const char*>(data);
    for (std::size_t done = 0; done < size; done += kSumBlock) {
      const auto block = std::min(kSumBlock, size - done);
      sum = crc32c(sum, bytes + done, block);
      if (hand_on) hand_on(bytes + done, block);
    }
  });
  return sum;
}

void require_right_sums(const MappedFile& file, const OpenSafetensors& opened) {
  const auto& entries = opened.header.entries;
  std::atomic<const TensorEntry*> damaged{nullptr};
  at::parallel_for(0, static_cast<std::int64_t>(entries.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end && !damaged; ++i) {
      const auto& entry = entries[static_cast<std::size_t>(i)];
      const auto sum = crc32c(0, file.data() + opened.start + entry.begin, entry.end - entry.begin);
      if (entry.crc32c && sum != *entry.crc32c) damaged = &entry;
    }
  });
  if (const auto* entry = damaged.load())
    throw CheckpointCorrupt(
        damage_text(entry->name, file.path().filename(), opened.start + entry->begin, opened.start + entry->end,
                    crc32c(0, file.data() + opened.start + entry->begin, entry->end - entry->begin), *entry->crc32c));
}

}  // namespace

void write_safetensors(const Value& checkpoint, const std::filesystem::path& path) {
  Structure structure = flatten(checkpoint);
  write_safetensors_file(std::move(structure.tensors), std::move(structure.tree), path);
}

// The sums stand before what they are of, so that the header is written once more at the end; where that cannot be (a
// pipe), the tensors are gone through twice. As other programs write it there are none.
std::unordered_map<std::string, std::uint32_t> write_safetensors_file(std::vector<NamedTensor> tensors,
                                                                      std::optional<Tree> tree,
                                                                      const std::filesystem::path& path) {
  sort_for_alignment(tensors);
  std::optional<std::string> structure;
  const bool seals = tree.has_value();
  if (tree) structure = write_json_for_file(Tree::Map{{"version", kFormat}, {"tree", std::move(*tree)}});
  std::string header = make_header(tensors, structure);
  AtomicFile file(path, as_error<CheckpointError>);
  std::vector<std::uint32_t> sums;
  if (seals && !file.can_rewrite()) {
    for (const auto& entry : tensors) sums.push_back(sum_of_tensor(entry.tensor, {}));
    put_sums(header, sums);
    sums.clear();
  }
  file.write(header);
  for (const auto& entry : tensors)
    sums.push_back(sum_of_tensor(entry.tensor, [&](const char* data, std::size_t size) { file.write(data, size); }));
  if (seals && file.can_rewrite()) {
    put_sums(header, sums);
    file.rewrite(0, header);
  }
  file.commit();
  std::unordered_map<std::string, std::uint32_t> by_name;
  for (std::size_t i = 0; i < tensors.size(); ++i) by_name.emplace(std::move(tensors[i].name), sums[i]);
  return by_name;
}

bool looks_like_safetensors(const MappedFile& file) {
  return file.size() > kLengthBytes && static_cast<char>(file.data()[kLengthBytes]) == '{';
}

OpenSafetensors open_safetensors(const MappedFile& file, bool verify) {
  if (file.size() < kLengthBytes)
    throw CheckpointCorrupt("it has " + std::to_string(file.size()) + " bytes, too few for a header");
  std::uint64_t length = header_length(file);
  if (length > kMaxHeader || length > file.size() - kLengthBytes)
    throw CheckpointCorrupt("it claims a header of " + std::to_string(length) + " bytes, but has " +
                            std::to_string(file.size()) + " in all: it is truncated or no safetensors file");
  std::uint64_t start = kLengthBytes + length;
  return {parse_header(file.text(kLengthBytes, length), file.size() - start, verify), start};
}

void fetch_header(const MappedFile& file) {
  file.fetch(0, kLengthBytes);
  if (file.size() < kLengthBytes) return;
  file.fetch(kLengthBytes, static_cast<std::size_t>(std::min<std::uint64_t>(header_length(file), kMaxHeader)));
}

SafetensorsContent read_safetensors_content(const std::shared_ptr<MappedFile>& file, bool verify) {
  auto [header, start] = open_safetensors(*file, verify);
  SafetensorsContent content;
  content.has_sums = header.has_sums;
  for (const auto& entry : header.entries) {
    if (!entry.type) throw CheckpointCorrupt("the entry '" + entry.name + "' has a type that is never written");
    content.tensors.push_back(
        {entry.name,
         tensor_at(file->data() + start + entry.begin, entry.end - entry.begin, entry.shape, *entry.type, file),
         start + entry.begin, entry.crc32c});
  }
  if (header.structure) content.structure = parse_structure(*header.structure);
  return content;
}

Value read_safetensors(const std::shared_ptr<MappedFile>& file, bool verify) {
  const OpenSafetensors opened = open_safetensors(*file, verify);
  const auto& [header, start] = opened;
  if (file->populate() && verify && header.has_sums) require_right_sums(*file, opened);
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
