#include "launcher/rendezvous/liveness_probes.h"

#include <algorithm>

namespace fabric::rendezvous {
namespace {

/// A launcher that is just ending may still take a connection, and drop it.
constexpr int kMostTries = 5;
constexpr std::chrono::milliseconds kPause{100};

}  // namespace

void LivenessProbes::begin(const NodeInfo& node, std::chrono::nanoseconds limit, Time now) {
  probes_[node.id] = {node, std::make_unique<ConnectAttempt>(epoll_, targets_of(node), job_key_, now + limit), limit, 1,
                      now};
}

bool LivenessProbes::handle(int fd) {
  return std::any_of(probes_.begin(), probes_.end(),
                     [&](auto& entry) { return entry.second.attempt && entry.second.attempt->handle(fd); });
}

std::vector<std::pair<std::string, Leader::Fate>> LivenessProbes::tick(Time now) {
  std::vector<std::pair<std::string, Leader::Fate>> results;
  for (auto it = probes_.begin(); it != probes_.end();) {
    auto& check = it->second;
    if (!check.attempt && now >= check.again)
      check.attempt = std::make_unique<ConnectAttempt>(epoll_, targets_of(check.node), job_key_, now + check.limit);
    if (check.attempt) check.attempt->tick(now);
    if (!check.attempt || !check.attempt->is_over()) {
      ++it;
      continue;
    }
    auto fate = fate_of(check);
    if (fate == Leader::Fate::unknown && check.attempt->any_hung_up() && check.tries < kMostTries) {
      ++check.tries;
      check.attempt.reset();
      check.again = now + kPause;
      ++it;
      continue;
    }
    results.emplace_back(it->first, fate);
    it = probes_.erase(it);
  }
  return results;
}

Leader::Fate LivenessProbes::fate_of(Check& check) {
  while (auto reached = check.attempt->take_reached()) {
    if (reached->here.id != check.node.id) continue;
    const auto& host = reached->here.host_id;
    return host.empty() || host == own_id_ ? Leader::Fate::lives : Leader::Fate::moved;
  }
  return check.attempt->any_refused() ? Leader::Fate::ended : Leader::Fate::unknown;
}

Time LivenessProbes::deadline() const {
  Time first = Time::max();
  for (const auto& [id, check] : probes_)
    first = std::min(first, check.attempt ? check.attempt->deadline() : check.again);
  return first;
}

}  // namespace fabric::rendezvous
