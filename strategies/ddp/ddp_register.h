#pragma once

#include <fabric/strategies/registry.h>

namespace fabric {

void register_ddp(StrategyRegistry& registry);

}  // namespace fabric
