#pragma once

#include <memory>
#include <string>
#include <vector>

#include "plugins/collectives/group.h"

namespace fabric::collectives {

/// The timeout of the config; throws ConfigError for one that is not positive.
std::chrono::milliseconds timeout_of(const ProcessGroup::Config& config);
BackendRequest request_of(const Identity& id);
/// Chooses the backend that config, ranks and device ask for and joins the other ranks.
void join_job(Group& group);
/// The same ranks over connections of their own; `parent` itself where its backend is another than Gloo. Called by all.
std::shared_ptr<Group> make_apart(const std::shared_ptr<Group>& parent, const std::string& name);
/// Called by all ranks of `parent`. Ranks that do not belong get a group which says so (Identity::outside).
std::shared_ptr<Group> make_subgroup(Group& parent, std::vector<int> ranks, const std::string& name);
/// "fabric/WISH/7": a name that no other group of this process has.
std::string unique_group_name(const std::string& wish);

}  // namespace fabric::collectives
