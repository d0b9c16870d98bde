#pragma once

#include <fabric/strategies/registry.h>

namespace fabric {

void register_dp(StrategyRegistry& registry);

}  // namespace fabric
