#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

namespace sim {

inline constexpr int kDevices = 2;
/// Per device; the first is the default stream, the others are the pool that streams are taken from in turn.
inline constexpr int kStreams = 16;

/// Who acts: stream `s` of device `d` is d * kStreams + s, the host is the last. All threads of the host are one, since
/// what is missing between threads is for the thread sanitizer to find.
using Place = int;
inline constexpr Place kHost = kDevices * kStreams;
inline constexpr int kPlaces = kHost + 1;

inline Place place_of(int device, int stream) { return device * kStreams + stream; }
inline std::string name_of(Place place) {
  if (place == kHost) return "the host";
  return "sim:" + std::to_string(place / kStreams) + "/stream" + std::to_string(place % kStreams);
}

/// How many actions of each place are known to have ended (L. Lamport, 1978; F. Mattern, "Virtual Time and Global
/// States of Distributed Systems", 1989). An action is ordered before another when the other's clock has reached its
/// tick.
struct VectorClock {
  std::array<std::uint64_t, kPlaces> ticks{};

  std::uint64_t operator[](Place place) const { return ticks[static_cast<std::size_t>(place)]; }
  std::uint64_t& operator[](Place place) { return ticks[static_cast<std::size_t>(place)]; }
  void join(const VectorClock& other) {
    for (std::size_t i = 0; i < ticks.size(); ++i) ticks[i] = std::max(ticks[i], other.ticks[i]);
  }
};

}  // namespace sim
