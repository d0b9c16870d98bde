#include <fabric/helpers/list_parts.h>

#include <fabric/accelerators/accelerator.h>
#include <fabric/helpers/finetuning/strategy_adapter.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/collectives/backend.h>
#include <fabric/plugins/environments/cluster_environment.h>
#include <fabric/plugins/loggers/registry.h>
#include <fabric/plugins/precision/precision.h>
#include <fabric/strategies/ddp_comm_hooks.h>
#include <fabric/strategies/registry.h>

namespace fabric {

std::vector<PartList> list_parts() {
  // A registry is made when it is first asked.
  StrategyRegistry::instance();
  StrategyAdapterRegistry::instance();
  registered_accelerators();
  available_precisions();
  available_loggers();
  available_environments();
  available_backends();
  available_comm_hooks();
  available_checkpoint_ios();
  available_lr_schedulers();
  available_optimizers();
  return registered_parts();
}

}  // namespace fabric
