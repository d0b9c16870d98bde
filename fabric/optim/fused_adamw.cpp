#include "fabric/optim/fused_adam_internal.h"

#include <ATen/ops/_fused_adamw.h>

#include <fabric/optim/fused.h>

namespace fabric::optim {
namespace detail {

struct AdamWLists : Lists<AdamBucket<AdamWOptions, torch::optim::AdamWParamState>> {};

}  // namespace detail

at::Tensor AdamW::step(LossClosure closure) {
  auto kernel = [](auto&&... arguments) { at::_fused_adamw_(arguments...); };
  return detail::fused_step(
      lists_, param_groups_, state_, closure,
      [&](auto& bucket, const AdamWOptions& options) { bucket.run(options, kernel); },
      [&] { torch::optim::AdamW::step(); });
}

}  // namespace fabric::optim
