#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/tree.h>

#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric::checkpoint {

inline constexpr std::uint64_t kLengthBytes = 8;
inline constexpr std::uint64_t kMaxHeader = 100'000'000;  // what other readers accept

struct TensorEntry {
  std::string name;
  std::optional<c10::ScalarType> type;  // none: one of less than a byte, which LibTorch has no numbers for
  std::string type_name;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes from the end of the header
  std::uint64_t end = 0;
  std::optional<std::uint32_t> crc32c = {};  // of those bytes
};

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;      // by position in the file
  std::optional<std::string> structure;  // the metadata that this library writes
  bool has_sums = false;
};

/// Reads JSON that nobody vouches for, of no more values than ReadLimits allow, since one may take a byte of the file
/// and 40 of memory. Throws CheckpointCorrupt.
Tree read_json_of_file(std::string_view text, const std::string& what);
/// JSON that read_json_of_file takes. Throws CheckpointError for more values.
std::string write_json_for_file(const Tree& tree);

/// Checks everything against the size of the data that follows: the entries must cover it without gap or overlap.
/// Throws CheckpointCorrupt naming the entry and what is wrong with it. `verify`: the header's checksum of itself is
/// compared and those of the entries are taken, where it has them.
SafetensorsHeader parse_header(std::string_view text, std::uint64_t data_size, bool verify);

/// Length and header for these tensors, which must be written in this order; padded so that the data begins at a
/// multiple of 64 bytes. With a structure it has checksums, which are zeros yet; without one none, nor anything else
/// that other programs do not write.
std::string make_header(const std::vector<NamedTensor>& tensors, const std::optional<std::string>& structure);
/// The checksums of the tensors' bytes, in the same order, and the header's own; it must have them.
void put_sums(std::string& header, const std::vector<std::uint32_t>& sums);

}  // namespace fabric::checkpoint
