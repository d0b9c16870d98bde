#include <fabric/accelerators/accelerator.h>

#include "accelerators/processor_share.h"

namespace fabric {

int Accelerator::threads_per_rank(int local_world_size) const { return processor_share(local_world_size); }

}  // namespace fabric
