#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <c10/core/ScalarType.h>

#include <fabric/export.h>

namespace fabric::checkpoint {

/// Where the torch.save of one box, or of a value, lies.
struct DcpPlace {
  std::string file;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool operator==(const DcpPlace&) const = default;
};

struct DcpChunk {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> shape;
  DcpPlace place;
};

/// A key of a dict, or a place in a list.
struct DcpStep {
  std::string key;
  std::optional<std::int64_t> index;
};

/// A tensor in boxes that fill it, or any other value in one.
struct DcpEntry {
  std::string name;
  std::vector<DcpStep> path;
  std::optional<c10::ScalarType> type;  // none: no tensor
  std::vector<std::int64_t> shape;
  std::vector<DcpChunk> chunks;
};

/// What the file `.metadata` of torch.distributed.checkpoint says, in its order. None of its Python classes is looked
/// up: objects of the few that it is made of are read as records of their attributes, and others only matter where one
/// is needed. Throws CheckpointCorrupt for what makes no whole, CheckpointError for what is not read here.
FABRIC_API std::vector<DcpEntry> parse_dcp_metadata(std::string_view pickle);

}  // namespace fabric::checkpoint
