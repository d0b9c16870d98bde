#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace fabric::collectives {

// Ranks that came with different operations tell one another which: each writes a line into its own part of zeros, and
// the maximum over the ranks holds all lines. Every line has the same room, so that this exchange cannot disagree.
inline constexpr std::int64_t kLineRoom = 384;

inline void write_line(std::uint8_t* lines, int rank, std::string_view line) {
  std::copy_n(line.begin(), std::min<std::size_t>(line.size(), kLineRoom - 1), lines + rank * kLineRoom);
}

/// The error's text but for the advice at its end.
inline std::string mismatch_text(const std::uint8_t* lines, int rank, int size) {
  std::string text = "rank " + std::to_string(rank) + ": the ranks call different collectives, so none was run.";
  for (int other = 0; other < size; ++other)
    text += "\n  rank " + std::to_string(other) + ": " + reinterpret_cast<const char*>(lines + other * kLineRoom);
  return text + "\nCall the same operation with the same shape and type on every rank";
}

}  // namespace fabric::collectives
