#pragma once

#include <optional>

#include "launcher/ports.h"
#include "launcher/run/options.h"
#include "launcher/run/worker_environment.h"

namespace fabric::run {

/// Fills in from SLURM what the flags left open: one agent runs on each node of a step. Throws ConfigError when srun
/// started several launchers on one node.
Options complete_from_slurm(Options options, const EnvReader& env);

/// The job of this node, and its port, which nobody else is given as long as the reservation lives.
struct PlannedJob {
  Job job;
  std::optional<PortReservation> port;
};

/// Throws ConfigError for what contradicts itself, LaunchError naming the owner of a port that was asked for and taken.
PlannedJob plan_job(const Options& options, const EnvReader& env);

}  // namespace fabric::run
