#pragma once

#include <cmath>
#include <fstream>
#include <sstream>
#include <string>

#include <fabric/fabric.h>

/// This process's share of the machine's memory (PSS: pages that several processes share count in parts), in MB.
inline double memory_mb() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("Pss:", 0) == 0) return std::round(std::stod(line.substr(4)) / 1024);
  return 0;
}

/// What each rank holds now, LibTorch itself among it. Every rank calls it.
inline void print_memory_of_ranks(const fabric::Fabric& fabric) {
  auto all = fabric.all_gather(torch::tensor(memory_mb()));
  std::ostringstream text;
  for (int64_t rank = 0; rank < all.size(0); ++rank) text << (rank ? ", " : "") << all[rank].item<double>();
  fabric.print("memory per rank: ", text.str(), " MB");
}
