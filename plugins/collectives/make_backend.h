#pragma once

#include <memory>
#include <vector>

#include "plugins/collectives/group.h"

namespace fabric::collectives {

/// Takes the timeout over from the config; throws ConfigError for one that is not positive.
void set_timeout(Group& group);
/// Chooses the backend that config, ranks and device ask for and joins the other ranks.
void join_job(Group& group);
/// Joins over a caller's communicator, which says rank and size.
void join_communicator(Group& group, const void* mpi_comm);
/// Called by all ranks of `parent`. Ranks that do not belong get a group which says so (Group::outside).
std::shared_ptr<Group> make_subgroup(Group& parent, std::vector<int> ranks, const std::string& name);

}  // namespace fabric::collectives
