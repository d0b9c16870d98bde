#include <fabric/accelerators/accelerator.h>

#include <algorithm>

#include <ATen/Context.h>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

#include "fabric/base/processors/processor_share_internal.h"

namespace fabric {

void Accelerator::set_float32_matmul_precision(const std::string& name) {
  const std::vector<std::string> known{"highest", "high", "medium"};
  if (std::find(known.begin(), known.end(), name) == known.end())
    throw ConfigError("float32_matmul_precision cannot be '" + name + "'" + did_you_mean(name, known));
  at::globalContext().setFloat32MatmulPrecision(name);
}

int Accelerator::threads_per_rank(int local_world_size, const EnvReader& env) const {
  return processor_share(env, local_world_size);
}

}  // namespace fabric
