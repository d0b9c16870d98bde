#include "plugins/checkpoint_io/safetensors/safetensors_header.h"

#include <algorithm>
#include <cstring>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "plugins/checkpoint_io/integrity/sealed_text.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kMostDimensions = 64;  // LibTorch's own limit
constexpr std::uint64_t kDataAlignment = 64;
// The metadata with the checksums: the header's own, then that of each tensor by its position in the file.
constexpr const char* kSumsKey = "torchfabric.crc32c";
constexpr std::string_view kSumsMark = "\"torchfabric.crc32c\":\"";

[[noreturn]] void wrong_entry(const std::string& name, const std::string& why) {
  throw CheckpointCorrupt("the entry '" + name.substr(0, 200) + "' of the header " + why);
}

const Tree& field(const std::string& name, const Tree& entry, const char* key) {
  const Tree* found = entry.find(key);
  if (!found) wrong_entry(name, std::string("has no '") + key + "'");
  return *found;
}

std::vector<std::int64_t> integers(const std::string& name, const Tree& list, const char* key) {
  if (!list.is_list()) wrong_entry(name, std::string("has ") + list.kind() + " as '" + key + "' instead of a list");
  std::vector<std::int64_t> out;
  for (const auto& item : list.as_list()) {
    if (!item.is_int() || item.as_int() < 0)
      wrong_entry(name, std::string("has something other than a non-negative integer in '") + key + "'");
    out.push_back(item.as_int());
  }
  return out;
}

// Types that are packed more tightly than bytes: several numbers lie in one.
std::optional<std::uint64_t> bits_of_packed_type(std::string_view name) {
  if (name == "F4") return 4;
  if (name == "F6_E2M3" || name == "F6_E3M2") return 6;
  return std::nullopt;
}

std::optional<std::uint64_t> bytes_of_entry(const TensorEntry& entry) {
  if (entry.type) return checked_bytes(entry.shape, c10::elementSize(*entry.type));
  auto bits = checked_bytes(entry.shape, *bits_of_packed_type(entry.type_name));
  if (bits && *bits % 8 != 0)
    wrong_entry(entry.name, "ends in the middle of a byte: " + std::to_string(*bits) + " bits of " + entry.type_name);
  return bits ? std::optional(*bits / 8) : std::nullopt;
}

TensorEntry parse_entry(const std::string& name, const Tree& tree, std::uint64_t data_size) {
  if (!tree.is_map()) wrong_entry(name, std::string("is ") + tree.kind() + " instead of a map");
  TensorEntry entry;
  entry.name = name;
  const Tree& type = field(name, tree, "dtype");
  if (!type.is_string()) wrong_entry(name, std::string("has ") + type.kind() + " as 'dtype'");
  entry.type_name = type.as_string();
  entry.type = safetensors_type(entry.type_name);
  if (!entry.type && !bits_of_packed_type(entry.type_name))
    wrong_entry(name, "has the unknown type '" + entry.type_name + "'");
  entry.shape = integers(name, field(name, tree, "shape"), "shape");
  if (entry.shape.size() > kMostDimensions) wrong_entry(name, "has more than 64 dimensions");
  auto offsets = integers(name, field(name, tree, "data_offsets"), "data_offsets");
  if (offsets.size() != 2) wrong_entry(name, "needs two data_offsets, not " + std::to_string(offsets.size()));
  entry.begin = static_cast<std::uint64_t>(offsets[0]);
  entry.end = static_cast<std::uint64_t>(offsets[1]);
  if (entry.begin > entry.end) wrong_entry(name, "ends before it begins");
  if (entry.end > data_size)
    wrong_entry(name, "ends at byte " + std::to_string(entry.end) + " of the data, which has only " +
                          std::to_string(data_size) + ": the file is truncated or the header is wrong");
  auto bytes = bytes_of_entry(entry);
  if (!bytes) wrong_entry(name, "has a shape too large for any memory");
  if (*bytes != entry.end - entry.begin)
    wrong_entry(name, "has a shape and type of " + std::to_string(*bytes) + " bytes but data_offsets of " +
                          std::to_string(entry.end - entry.begin));
  return entry;
}

void require_metadata(const Tree& metadata) {
  if (!metadata.is_map()) wrong_entry("__metadata__", std::string("is ") + metadata.kind() + " instead of a map");
  for (const auto& [key, value] : metadata.as_map())
    if (!value.is_string())
      wrong_entry("__metadata__",
                  "has " + std::string(value.kind()) + " under '" + key + "'; only strings may be there");
}

void take_sums(const std::string& text, std::vector<TensorEntry>& entries) {
  if (text.size() != kSumDigits * (1 + entries.size()))
    wrong_entry("__metadata__", "has " + std::to_string(text.size() / kSumDigits) + " checksums for " +
                                    std::to_string(entries.size()) + " tensors and the header");
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].crc32c = sum_number(std::string_view(text).substr(kSumDigits * (1 + i), kSumDigits));
    if (!entries[i].crc32c) wrong_entry("__metadata__", "has something other than hexadecimal digits in its checksums");
  }
}

void require_sealed(std::string_view text) {
  if (text.find(kSumsMark) == text.npos) return;
  if (auto why = why_unsealed(text, kSumsMark); !why.empty())
    throw CheckpointCorrupt("the header is damaged: " + why +
                            ". (Or another program changed it and kept the metadata '" + kSumsKey +
                            "', which it must not)");
}

void require_cover(const std::vector<TensorEntry>& entries, std::uint64_t data_size) {
  std::uint64_t expected = 0;
  for (const auto& entry : entries) {
    if (entry.begin != expected)
      wrong_entry(entry.name,
                  std::string(entry.begin < expected ? "overlaps the one before it" : "leaves a gap before it") +
                      ": it begins at byte " + std::to_string(entry.begin) + " instead of " + std::to_string(expected));
    expected = entry.end;
  }
  if (expected != data_size)
    throw CheckpointCorrupt("the header describes " + std::to_string(expected) + " bytes of data, the file holds " +
                            std::to_string(data_size));
}

std::size_t values_in(const Tree& tree) {
  std::size_t count = 1;
  if (tree.is_list())
    for (const auto& item : tree.as_list()) count += values_in(item);
  if (tree.is_map())
    for (const auto& [key, item] : tree.as_map()) count += values_in(item);
  return count;
}

}  // namespace

std::string write_json_for_file(const Tree& tree) {
  const std::size_t count = values_in(tree), most = ReadLimits().nodes;
  if (count > most)
    throw CheckpointError("the checkpoint's values beside tensors and its tensors' descriptions are " +
                          std::to_string(count) + " pieces, of which " + std::to_string(most) +
                          " can be read again. Keep large data in tensors");
  return write_json(tree);
}

Tree read_json_of_file(std::string_view text, const std::string& what) {
  try {
    return read_json(text, what, {.bytes = kMaxHeader});
  } catch (const ConfigError& error) {
    throw CheckpointCorrupt(error.what());
  }
}

SafetensorsHeader parse_header(std::string_view text, std::uint64_t data_size, bool verify) {
  if (verify) require_sealed(text);
  Tree root = read_json_of_file(text, "the header");
  if (!root.is_map()) throw CheckpointCorrupt(std::string("the header is ") + root.kind() + " instead of a map");
  SafetensorsHeader header;
  const Tree* sums = nullptr;
  for (const auto& [name, entry] : root.as_map()) {
    if (name != "__metadata__") {
      header.entries.push_back(parse_entry(name, entry, data_size));
    } else if (!entry.is_null()) {
      require_metadata(entry);
      if (const Tree* structure = entry.find("fabric")) header.structure = structure->as_string();
      sums = entry.find(kSumsKey);
    }
  }
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  require_cover(header.entries, data_size);
  header.has_sums = sums != nullptr;
  if (sums && verify) take_sums(sums->as_string(), header.entries);
  return header;
}

std::string make_header(const std::vector<NamedTensor>& tensors, const std::optional<std::string>& structure) {
  Tree::Map root, metadata;
  if (structure) metadata.append(kSumsKey, std::string(kSumDigits * (1 + tensors.size()), '0'));
  metadata.append("format", "pt");
  if (structure) metadata.append("fabric", *structure);
  root.append("__metadata__", std::move(metadata));
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    Tree::List shape(tensor.sizes().begin(), tensor.sizes().end());
    std::uint64_t end = offset + tensor.nbytes();
    root.append(name, Tree::Map{{"dtype", std::string(*safetensors_name(tensor.scalar_type()))},
                                {"shape", std::move(shape)},
                                {"data_offsets", Tree::List{offset, end}}});
    offset = end;
  }
  std::string text = write_json_for_file(root);
  text.resize((text.size() + kLengthBytes + kDataAlignment - 1) / kDataAlignment * kDataAlignment - kLengthBytes, ' ');
  if (text.size() > kMaxHeader)
    throw CheckpointError("the checkpoint's names and values need a header of " + std::to_string(text.size()) +
                          " bytes; safetensors allows 100,000,000. Keep large data in tensors");
  std::uint64_t length = text.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + text;
}

void put_sums(std::string& header, const std::vector<std::uint32_t>& sums) {
  auto at = header.find(kSumsMark, kLengthBytes) + kSumsMark.size();
  for (auto sum : sums) header.replace(at += kSumDigits, kSumDigits, sum_text(sum));
  seal(header, kLengthBytes, kSumsMark);
}

}  // namespace fabric::checkpoint
