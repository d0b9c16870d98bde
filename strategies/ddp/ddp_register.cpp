#include "strategies/ddp/ddp_register.h"

#include <fabric/config.h>
#include <fabric/strategies/ddp.h>

namespace fabric {

void register_ddp(StrategyRegistry& registry) {
  auto make = [](const Tree& params) -> std::shared_ptr<Strategy> {
    return std::make_shared<DDPStrategy>(from_tree(params, detail::default_of<DDPStrategy::Config>()));
  };
  auto method = [](const char* name) { return Tree::Map{{"start_method", name}}; };
  registry.register_strategy("ddp", make, "a process per device; gradients are averaged over the ranks");
  registry.register_strategy("ddp_find_unused_parameters_true", make,
                             "ddp for models where some parameters get no gradient in some steps",
                             Tree::Map{{"find_unused_parameters", true}});
  registry.register_strategy("ddp_spawn", make, "ddp whose ranks are started to run one function", method("spawn"));
  registry.register_strategy("ddp_fork", make, "ddp whose ranks are forked to run one function", method("fork"));
  registry.register_strategy("ddp_notebook", make, "the same as ddp_fork", method("fork"));
}

}  // namespace fabric
