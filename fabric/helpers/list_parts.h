#pragma once

#include <fabric/base/registry/registered_parts.h>

namespace fabric {

/// What can be chosen by name, of every kind that the library has: strategies, accelerators, precisions, loggers,
/// environments, process-group backends, communication hooks, checkpoint formats, LR schedulers, optimizers and
/// adapters of the fine-tuning scheduler; what the program registered included. `fabric doctor` prints it.
FABRIC_API std::vector<PartList> list_parts();

}  // namespace fabric
