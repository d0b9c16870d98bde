#include "launcher/rendezvous/life_checks.h"

#include <algorithm>

namespace fabric::rendezvous {
namespace {

/// A launcher that is just ending may still take a connection, and drop it.
constexpr int kMostTries = 5;
constexpr std::chrono::milliseconds kPause{100};

}  // namespace

void LifeChecks::begin(const NodeInfo& node, std::chrono::nanoseconds limit, Time now) {
  checks_[node.id] = {node, std::make_unique<Dial>(epoll_, targets_of(node), token_, now + limit), limit, 1, now};
}

bool LifeChecks::handle(int fd) {
  return std::any_of(checks_.begin(), checks_.end(),
                     [&](auto& entry) { return entry.second.dial && entry.second.dial->handle(fd); });
}

std::vector<std::pair<std::string, Host::Fate>> LifeChecks::tick(Time now) {
  std::vector<std::pair<std::string, Host::Fate>> results;
  for (auto it = checks_.begin(); it != checks_.end();) {
    auto& check = it->second;
    if (!check.dial && now >= check.again)
      check.dial = std::make_unique<Dial>(epoll_, targets_of(check.node), token_, now + check.limit);
    if (check.dial) check.dial->tick(now);
    if (!check.dial || !check.dial->is_over()) {
      ++it;
      continue;
    }
    auto fate = fate_of(check);
    if (fate == Host::Fate::unknown && check.dial->any_hung_up() && check.tries < kMostTries) {
      ++check.tries;
      check.dial.reset();
      check.again = now + kPause;
      ++it;
      continue;
    }
    results.emplace_back(it->first, fate);
    it = checks_.erase(it);
  }
  return results;
}

Host::Fate LifeChecks::fate_of(Check& check) {
  while (auto reached = check.dial->take_reached()) {
    if (reached->here.id != check.node.id) continue;
    const auto& host = reached->here.host_id;
    return host.empty() || host == own_id_ ? Host::Fate::lives : Host::Fate::moved;
  }
  return check.dial->any_refused() ? Host::Fate::ended : Host::Fate::unknown;
}

Time LifeChecks::deadline() const {
  Time first = Time::max();
  for (const auto& [id, check] : checks_) first = std::min(first, check.dial ? check.dial->deadline() : check.again);
  return first;
}

}  // namespace fabric::rendezvous
