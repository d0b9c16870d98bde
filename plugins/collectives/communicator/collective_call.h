#pragma once

#include <cstdint>
#include <string>

#include <c10/core/ScalarType.h>

#include <fabric/export.h>

#include "plugins/collectives/communicator/communicator.h"

namespace fabric::collectives {

enum class CallKind : std::uint8_t {
  duplicate,
  barrier,
  all_reduce,
  reduce,
  reduce_scatter,
  broadcast,
  all_gather,
  gather,
  scatter,
  all_to_all
};

/// What a rank is about to do on a communicator, as far as all ranks have to do the same.
struct CollectiveCall {
  CallKind kind;
  std::int64_t bytes = 0;
  at::ScalarType type = at::kByte;
  Communicator::Op op = Communicator::Op::UNUSED;
  int root = -1;

  FABRIC_API const char* name() const;
  /// Packed and not hashed: it is made for each of the smallest operations.
  std::int64_t mark() const {
    return static_cast<std::int64_t>(
        static_cast<std::uint64_t>(bytes) << 28 | (static_cast<std::uint64_t>(root + 1) & 0xfff) << 16 |
        static_cast<std::uint64_t>(type) << 8 | static_cast<std::uint64_t>(op) << 4 | static_cast<std::uint64_t>(kind));
  }
  /// "all_reduce(sum) of 4 Float items".
  FABRIC_API std::string text() const;
};

}  // namespace fabric::collectives
