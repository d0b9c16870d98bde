#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "launcher/rendezvous/message.h"

// Who hosts after a host is gone, and which part of a job may go on when the network fell apart.
namespace fabric::rendezvous {

/// Nodes known to be gone: true when certain (its system said that the launcher ended), false when merely silent.
using Gone = std::map<std::string, bool>;

/// The host, then the round's nodes by group rank, then spares: the first that is not gone is the next host.
std::vector<NodeInfo> succession(const Roster& roster);
std::optional<NodeInfo> next_host(const Roster& roster, const Gone& gone);

/// Silence may be a cut network, beyond which the other part of the job lives. To go on takes more than half of the
/// round's nodes, those that certainly ended not counted; or half of them with the first in the succession.
bool has_quorum(const Roster& roster, const Gone& gone, const std::set<std::string>& present);

/// Order of group ranks: the wanted ones, then by name of the host with numbers in it as numbers, then by process.
bool comes_before(const NodeInfo& one, const NodeInfo& other);

}  // namespace fabric::rendezvous
