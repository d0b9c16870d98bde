#pragma once
// What the benchmarks share: two sides measured in turn within one run, minima compared, a table printed.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace bench {

using Clock = std::chrono::steady_clock;

/// Microseconds per iteration of `work`, run `count` times.
template <class Work>
double time_us(Work&& work, int count) {
  auto start = Clock::now();
  for (int i = 0; i < count; ++i) work();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / count;
}

struct Pair {
  double ours = 1e300, theirs = 1e300;
  double ratio() const { return ours / theirs; }
};

/// Runs both sides in turn, `rounds` times `count` iterations each, and keeps each side's fastest round.
template <class Ours, class Theirs>
Pair compare(Ours&& ours, Theirs&& theirs, int count, int rounds) {
  Pair best;
  time_us(ours, std::max(1, count / 4));
  time_us(theirs, std::max(1, count / 4));
  for (int round = 0; round < rounds; ++round) {
    best.theirs = std::min(best.theirs, time_us(theirs, count));
    best.ours = std::min(best.ours, time_us(ours, count));
  }
  return best;
}

inline void header() { std::printf("%-52s %12s %12s %8s %8s\n", "what", "ours", "compared", "ratio", "bar"); }
/// One row: two figures with their unit, the ratio, the bar it must stay under and whether it does.
inline void row(const std::string& what, double ours, double theirs, const char* unit, double bar) {
  double ratio = ours / theirs;
  std::printf("%-52s %9.2f %-2s %9.2f %-2s %8.3f %8.3f %s\n", what.c_str(), ours, unit, theirs, unit, ratio, bar,
              ratio <= bar ? "ok" : "OVER");
  std::fflush(stdout);
}
/// One row for a figure with a bar of its own instead of a ratio.
inline void figure(const std::string& what, double ours, const char* unit, double bar) {
  std::printf("%-52s %9.2f %-2s %12s %8s %8.2f %s\n", what.c_str(), ours, unit, "", "", bar,
              ours <= bar ? "ok" : "OVER");
  std::fflush(stdout);
}

/// Instructions that this thread executes in `work`, or 0 where the system does not count them.
std::uint64_t instructions(const std::function<void()>& work);
/// Calls of malloc and its kin while `work` runs.
std::uint64_t allocations(const std::function<void()>& work);

}  // namespace bench
