#pragma once

#include <string>
#include <vector>

namespace fabric::collectives {

/// "rank 1" or "ranks 1, 3"; long lists end in "… (20 in all)".
inline std::string list_of_ranks(const std::vector<int>& ranks) {
  constexpr std::size_t kShown = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size() && i < kShown; ++i) text += (i ? ", " : "") + std::to_string(ranks[i]);
  if (ranks.size() > kShown) text += ", … (" + std::to_string(ranks.size()) + " in all)";
  return text;
}

}  // namespace fabric::collectives
