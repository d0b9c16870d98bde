#include "launcher/rendezvous/election.h"

#include <string.h>

#include <climits>
#include <tuple>

namespace fabric::rendezvous {

std::vector<NodeInfo> succession(const Roster& roster) {
  std::vector<NodeInfo> order, rest;
  for (const auto* list : {&roster.nodes, &roster.spares})
    for (const auto& node : *list) (node.id == roster.host_id ? order : rest).push_back(node);
  order.insert(order.end(), rest.begin(), rest.end());
  return order;
}

std::optional<NodeInfo> next_host(const Roster& roster, const Gone& gone) {
  for (auto& node : succession(roster))
    if (!gone.contains(node.id)) return node;
  return std::nullopt;
}

bool has_quorum(const Roster& roster, const Gone& gone, const std::set<std::string>& present) {
  int silent = 0, here = 0;
  auto certainly_gone = [&](const NodeInfo& node) {
    auto found = gone.find(node.id);
    return found != gone.end() && found->second;
  };
  for (const auto& node : roster.nodes) {
    if (certainly_gone(node)) continue;
    ++(present.contains(node.id) ? here : silent);
  }
  if (here != silent) return here > silent;
  for (const auto& node : succession(roster))
    if (!certainly_gone(node)) return present.contains(node.id);
  return false;
}

bool comes_before(const NodeInfo& one, const NodeInfo& other) {
  auto rank = [](const NodeInfo& node) { return node.wanted_rank < 0 ? INT_MAX : node.wanted_rank; };
  if (rank(one) != rank(other)) return rank(one) < rank(other);
  if (int order = strverscmp(one.host.c_str(), other.host.c_str())) return order < 0;
  return std::tie(one.pid, one.id) < std::tie(other.pid, other.id);
}

}  // namespace fabric::rendezvous
