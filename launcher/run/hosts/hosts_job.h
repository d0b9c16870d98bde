#pragma once

#include <fabric/base/env_reader.h>

#include "launcher/run/options.h"

namespace fabric::run {

/// `fabric run --hosts …`: starts a launcher on each host over ssh, hands the job to them, passes on what ranks write
/// and what signals come, and ends all of them together. Returns the exit code; what went wrong has been said on
/// stderr.
int run_on_hosts(const Options& options, const EnvReader& env);

}  // namespace fabric::run
