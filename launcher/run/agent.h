#pragma once

#include "launcher/run/options.h"

namespace fabric::run {

/// Runs the job of this node, with all its attempts. Returns the exit code; what went wrong has been said on stderr.
int run_job(const Options& options, const EnvReader& env);

}  // namespace fabric::run
