#include "fabric/optim/fused_adam_internal.h"

#include <ATen/ops/_fused_adam.h>

#include <fabric/optim/fused.h>

namespace fabric::optim {
namespace detail {

struct AdamLists : Lists<AdamBucket<AdamOptions, torch::optim::AdamParamState>> {};

}  // namespace detail

at::Tensor Adam::step(LossClosure closure) {
  auto kernel = [](auto&&... arguments) { at::_fused_adam_(arguments...); };
  return detail::fused_step(
      lists_, param_groups_, state_, closure,
      [&](auto& bucket, const AdamOptions& options) { bucket.run(options, kernel); },
      [&] { torch::optim::Adam::step(); });
}

}  // namespace fabric::optim
