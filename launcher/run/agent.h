#pragma once

#include "launcher/run/options.h"

namespace fabric::run {

class Lifeline;

/// Runs the job of this node, with all its attempts. Returns the exit code; what went wrong has been said on stderr.
/// With a lifeline the job is one of a launcher elsewhere, and ends with the connection to that.
int run_job(const Options& options, const EnvReader& env, Lifeline* lifeline = nullptr);

}  // namespace fabric::run
