#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <fabric/base/error.h>

namespace fabric::collectives {

// Ranks that came with different operations tell one another which: all gather a line of the same room from each, so
// that this exchange itself cannot disagree.
inline constexpr std::int64_t kLineBytes = 384;

/// Throws MismatchError with what every rank called. `all_gather(const void* line, void* lines, bytes)` exchanges.
template <class AllGather>
[[noreturn]] void throw_exchanged_lines(int rank, int size, std::string_view mine, const std::string& advice,
                                        AllGather&& all_gather) {
  std::vector<char> line(kLineBytes, 0), lines(static_cast<std::size_t>(size * kLineBytes), 0);
  std::copy_n(mine.begin(), std::min<std::size_t>(mine.size(), kLineBytes - 1), line.begin());
  all_gather(static_cast<const void*>(line.data()), static_cast<void*>(lines.data()), kLineBytes);
  std::string text = "rank " + std::to_string(rank) + ": the ranks call different collectives, so none was run.";
  for (int other = 0; other < size; ++other)
    text += "\n  rank " + std::to_string(other) + ": " + (lines.data() + other * kLineBytes);
  throw MismatchError(text + "\nCall the same operation with the same shape and type on every rank" + advice);
}

}  // namespace fabric::collectives
