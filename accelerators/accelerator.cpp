#include <fabric/accelerators/accelerator.h>

#include "fabric/base/processor_share_internal.h"

namespace fabric {

int Accelerator::threads_per_rank(int local_world_size) const { return processor_share(local_world_size); }

}  // namespace fabric
