#include <fabric/data/dataloader.h>

#include <algorithm>
#include <string>

#include <fabric/base/error.h>

#include "fabric/base/processors/processor_share_internal.h"

namespace fabric {

void detail::check_only_placement(const DataLoaderOptions& options) {
  const DataLoaderOptions untouched;
  bool same = options.batch_size == untouched.batch_size && options.shuffle == untouched.shuffle &&
              !options.sampler.given() && !options.batch_sampler.given() && options.drop_last == untouched.drop_last &&
              options.workers == untouched.workers && options.prefetch == untouched.prefetch &&
              options.in_order == untouched.in_order && options.pin_memory == untouched.pin_memory &&
              options.seed == untouched.seed && options.timeout == untouched.timeout;
  if (!same)
    throw MisuseError(
        "a loader that exists already takes only use_distributed_sampler and move_to_device here: give the other "
        "options "
        "to make_dataloader");
}

int suggested_max_num_workers(int local_world_size, const EnvReader& env) {
  if (local_world_size < 1)
    throw ConfigError("local_world_size is " + std::to_string(local_world_size) +
                      ": at least 1 process uses the cores");
  return std::max(1, processor_share(env, local_world_size) - 1);
}

}  // namespace fabric
