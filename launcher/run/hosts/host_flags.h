#pragma once

#include <functional>

#include <fabric/base/tree.h>

#include "launcher/run/options.h"
#include "launcher/run/settings.h"

namespace fabric::run {

/// Whether a setting was given, by flag, variable or file.
using WasGiven = std::function<bool(const std::string& field)>;

/// --hosts, --hostfile and what belongs to them; without the two, nothing. `values` are all settings. Throws
/// ConfigError.
void choose_hosts(const Settings& given, const Tree& values, const WasGiven& was_given, Options& options);

/// How many workers a host has: as -n says where it was given, else its slots. A number, or auto, cpu or gpu.
std::string workers_of(const Host& host, const Options& options);

}  // namespace fabric::run
