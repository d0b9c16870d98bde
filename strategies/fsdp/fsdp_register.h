#pragma once

#include <fabric/strategies/registry.h>

namespace fabric {

void register_fsdp(StrategyRegistry& registry);

}  // namespace fabric
