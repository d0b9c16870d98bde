#pragma once

#include "launcher/rendezvous/node.h"
#include "launcher/run/runner.h"

namespace fabric::run {

/// Runs this node's part of a job on several nodes, round by round, as its rendezvous decides. Returns the exit code.
int run_on_several_nodes(Runner& runner, Job job, const rendezvous::NodeSetup& setup);

}  // namespace fabric::run
