#include "strategies/sharded/buffer_pool.h"

#include <algorithm>

#include <c10/core/InferenceMode.h>

namespace fabric::sharded {

at::Tensor BufferPool::take(std::int64_t bytes) {
  bytes = std::max<std::int64_t>(bytes, 64);
  // The smallest that is large enough, and not so large that somebody else will miss it.
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    auto size = static_cast<std::int64_t>(it->nbytes());
    if (size < bytes || size > 2 * bytes + 4096) continue;
    if (best == free_.end() || it->nbytes() < best->nbytes()) best = it;
  }
  if (best != free_.end()) {
    at::Tensor found = std::move(*best);
    *best = std::move(free_.back());
    free_.pop_back();
    return found;
  }
  c10::InferenceMode outside(false);
  bytes_ += bytes;
  return group_.empty({bytes}, at::TensorOptions(device_).dtype(at::kByte));
}

void BufferPool::give(at::Tensor buffer) {
  if (buffer.defined()) free_.push_back(std::move(buffer));
}

void BufferPool::lose(at::Tensor buffer) {
  if (buffer.defined()) lost_.push_back(std::move(buffer));
}

at::Tensor typed(const at::Tensor& bytes, at::ScalarType type, std::int64_t numel) {
  return bytes.narrow(0, 0, numel * static_cast<std::int64_t>(c10::elementSize(type))).view(type);
}

}  // namespace fabric::sharded
