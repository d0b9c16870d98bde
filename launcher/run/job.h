#pragma once

#include <optional>

#include "fabric/base/ports_internal.h"
#include "launcher/rendezvous/node.h"
#include "launcher/run/options.h"
#include "launcher/run/workers/worker_environment.h"

namespace fabric::run {

/// Fills in from SLURM what the flags left open: one agent runs on each node of a step. Throws ConfigError when srun
/// started several launchers on one node.
Options complete_from_slurm(Options options, const EnvReader& env);

/// The job of this node. On one node all of it is known, and its port is given to nobody else as long as the
/// reservation lives; on several, `rendezvous` tells how the nodes meet, and each round its place and its port.
struct PlannedJob {
  Job job;
  std::optional<PortReservation> port;
  std::optional<rendezvous::NodeSetup> rendezvous;
};

/// Throws ConfigError for what contradicts itself, LaunchError naming the owner of a port that was asked for and taken.
PlannedJob plan_job(const Options& options, const EnvReader& env);

}  // namespace fabric::run
