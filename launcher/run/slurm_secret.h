#pragma once

#include <fabric/base/env_reader.h>

#include "launcher/rendezvous/node.h"

namespace fabric::run {

/// Gives the launchers of a SLURM step a random secret: that of node 0 makes it, and SLURM's own sbcast carries it into
/// a file on each node, for this user alone. Sets `secret` on node 0 and `secret_file` on the others; neither where
/// there is no sbcast, or it fails.
void share_secret_by_slurm(rendezvous::NodeSetup& setup, const EnvReader& env);

}  // namespace fabric::run
