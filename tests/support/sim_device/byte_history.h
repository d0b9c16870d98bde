#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <vector>

#include "tests/support/sim_device/clock.h"

namespace sim {

/// One operator's use of some bytes. `op` lives as long as the process.
struct Access {
  Place place = kHost;
  std::uint64_t tick = 0;  // 0: never
  const char* op = "";

  bool ordered_before(Place other, const VectorClock& clock) const { return place == other || tick <= clock[place]; }
};

/// Who wrote and read the bytes of one block last. The bytes are cut into ranges of one history each, so that views of
/// a buffer (gradients in a bucket) are told apart and one access costs the search for its range.
///
/// Invariant: ranges do not overlap. Of reads that are ordered one after the other the last is kept: who comes after it
/// comes after the others, too.
class ByteHistory {
 public:
  struct Conflict {
    Access with;
    bool with_write = false;
  };

  /// Adds an access to [begin, end) by `now`, whose place has come to `clock`. Returns the first earlier access that it
  /// is not ordered after: of a write any, of a read a write.
  std::optional<Conflict> record(std::size_t begin, std::size_t end, bool writes, const Access& now,
                                 const VectorClock& clock);
  /// The first access that is not ordered before what `place` does next.
  std::optional<Conflict> unordered(Place place, const VectorClock& clock) const;
  /// The last write to this byte.
  Access last_write(std::size_t byte) const;
  void clear() { ranges_.clear(); }
  std::size_t ranges() const { return ranges_.size(); }

 private:
  struct Range {
    std::size_t end = 0;
    Access write;
    std::vector<Access> reads;
  };
  using Ranges = std::map<std::size_t, Range>;

  static std::optional<Conflict> conflict_in(const Range& range, bool writes, Place place, const VectorClock& clock);
  static void add_read(Range& range, const Access& now, const VectorClock& clock);
  void split_at(std::size_t byte);
  void read(std::size_t begin, std::size_t end, const Access& now, const VectorClock& clock);

  Ranges ranges_;  // by their first byte
};

}  // namespace sim
