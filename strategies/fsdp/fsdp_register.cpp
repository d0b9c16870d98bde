#include "strategies/fsdp/fsdp_register.h"

#include <fabric/config.h>
#include <fabric/strategies/fsdp.h>

namespace fabric {

void register_fsdp(StrategyRegistry& registry) {
  auto make = [](const Tree& params) -> std::shared_ptr<Strategy> {
    return std::make_shared<FSDPStrategy>(from_tree(params, FSDPStrategy::Config()));
  };
  registry.register_strategy(
      "fsdp", make, "a process per device; parameters, gradients and optimizer state are spread over the ranks");
  registry.register_strategy("fsdp_cpu_offload", make, "fsdp whose parameters and optimizer state are in host memory",
                             Tree::Map{{"cpu_offload", true}});
}

}  // namespace fabric
