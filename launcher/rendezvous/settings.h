#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace fabric::rendezvous {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

inline std::chrono::nanoseconds in_clock(double seconds) {
  return std::chrono::nanoseconds(static_cast<long long>(seconds * 1e9));
}

/// What --rdzv-conf can set; seconds.
struct Timing {
  double join = 600;      // for enough nodes to come, and for one node to find the others
  double last_call = 30;  // for more nodes, once enough are there; first round only
  double heartbeat = 5;   // a node that is silent for `misses` times this is gone
  int misses = 3;
  double late_join = 1;    // between a late node and the restart that takes it in, so that several share one
  double replacement = 0;  // for a new node, when too few are left
  double connect = 3;      // for one connection
  bool majority = true;    // after nodes fell silent, only the side with more than half of them goes on
  std::optional<bool> is_host;

  /// A beat less than `misses` intervals, so that the others have acted when those are over.
  std::chrono::nanoseconds silence_limit() const { return in_clock(heartbeat * misses) - beat_period(); }
  /// Beats are sent more often than they are missed, so that a lost packet, which TCP repeats late, is no loss.
  std::chrono::nanoseconds beat_period() const { return in_clock(heartbeat / 5); }
};

/// Reads "join_timeout=60,heartbeat_interval=2"; torchrun's names are understood. Throws ConfigError naming the
/// nearest.
Timing parse_timing(const std::string& conf);

struct Settings {
  int min_nodes = 1, max_nodes = 1, max_restarts = 0;
  double grace = 30;  // that workers have to end
  Timing timing;
  std::string run_id;
  /// For every round; empty and 0: an address that all nodes reach, and a free port.
  std::string master_addr;
  int master_port = 0;
  /// Names of the nodes by their wanted rank, where a scheduler told them.
  std::vector<std::string> expected;
  /// By one command, that says who is missing: arrivals are no news.
  bool started_together = false;
};

}  // namespace fabric::rendezvous
