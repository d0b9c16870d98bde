#include "tests/support/sim_device/byte_history.h"

#include <iterator>

namespace sim {

std::optional<ByteHistory::Conflict> ByteHistory::conflict_in(const Range& range, bool writes, Place place,
                                                              const VectorClock& clock) {
  if (!range.write.ordered_before(place, clock)) return Conflict{range.write, true};
  if (writes)
    for (const auto& read : range.reads)
      if (!read.ordered_before(place, clock)) return Conflict{read, false};
  return std::nullopt;
}

void ByteHistory::add_read(Range& range, const Access& now, const VectorClock& clock) {
  std::erase_if(range.reads, [&](const Access& read) { return read.ordered_before(now.place, clock); });
  range.reads.push_back(now);
}

void ByteHistory::split_at(std::size_t byte) {
  auto after = ranges_.lower_bound(byte);
  if (after == ranges_.begin()) return;
  Range& before = std::prev(after)->second;
  if (before.end <= byte) return;
  Range rest = before;
  before.end = byte;
  ranges_.emplace_hint(after, byte, std::move(rest));
}

void ByteHistory::read(std::size_t begin, std::size_t end, const Access& now, const VectorClock& clock) {
  auto next = ranges_.lower_bound(begin);
  for (std::size_t at = begin; at < end;) {
    if (next == ranges_.end() || next->first > at) {
      std::size_t stop = next == ranges_.end() ? end : std::min(end, next->first);
      next = std::next(ranges_.emplace_hint(next, at, Range{stop, {}, {now}}));
      at = stop;
      continue;
    }
    add_read(next->second, now, clock);
    at = next->second.end;
    ++next;
  }
}

std::optional<ByteHistory::Conflict> ByteHistory::record(std::size_t begin, std::size_t end, bool writes,
                                                         const Access& now, const VectorClock& clock) {
  if (begin >= end) return std::nullopt;
  // What is used is mostly what was used before.
  auto same = ranges_.find(begin);
  if (same == ranges_.end() || same->second.end != end) {
    split_at(begin);
    split_at(end);
    same = ranges_.end();
  }
  std::optional<Conflict> found;
  auto first = same != ranges_.end() ? same : ranges_.lower_bound(begin);
  auto last = first;
  for (; last != ranges_.end() && last->first < end; ++last)
    if (!found) found = conflict_in(last->second, writes, now.place, clock);
  if (!writes) {
    read(begin, end, now, clock);
  } else if (same != ranges_.end()) {
    same->second.write = now;
    same->second.reads.clear();
  } else {
    ranges_.emplace_hint(ranges_.erase(first, last), begin, Range{end, now, {}});
  }
  return found;
}

std::optional<ByteHistory::Conflict> ByteHistory::unordered(Place place, const VectorClock& clock) const {
  for (const auto& [begin, range] : ranges_)
    if (auto found = conflict_in(range, /*writes=*/true, place, clock)) return found;
  return std::nullopt;
}

Access ByteHistory::last_write(std::size_t byte) const {
  auto after = ranges_.upper_bound(byte);
  if (after == ranges_.begin()) return {};
  const Range& range = std::prev(after)->second;
  return byte < range.end ? range.write : Access{};
}

}  // namespace sim
