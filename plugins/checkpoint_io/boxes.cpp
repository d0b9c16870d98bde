#include "plugins/checkpoint_io/boxes.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>

namespace fabric::checkpoint {

void copy_common(const at::Tensor& from, at::IntArrayRef from_offsets, at::Tensor& into, at::IntArrayRef into_offsets) {
  at::NoGradGuard no_grad;
  at::Tensor source = from, target = into;
  for (std::int64_t d = 0; d < into.dim(); ++d) {
    const auto i = static_cast<std::size_t>(d);
    const auto begin = std::max(from_offsets[i], into_offsets[i]);
    const auto end = std::min(from_offsets[i] + from.size(d), into_offsets[i] + into.size(d));
    if (begin >= end) return;
    source = source.narrow(d, begin - from_offsets[i], end - begin);
    target = target.narrow(d, begin - into_offsets[i], end - begin);
  }
  target.copy_(source);
}

}  // namespace fabric::checkpoint
