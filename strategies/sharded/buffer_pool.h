#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/plugins/collectives/process_group.h>

namespace fabric::sharded {

/// Memory that is used again: what was given back is handed out to the next who wants about as much, so that a training
/// step allocates nothing once it has been gone through.
class BufferPool {
 public:
  BufferPool(ProcessGroup group, c10::Device device) : group_(std::move(group)), device_(device) {}
  /// A tensor of at least that many bytes, with any content.
  at::Tensor take(std::int64_t bytes);
  void give(at::Tensor buffer);
  /// Keeps it as long as the pool lives, for an operation that failed and may not have ended.
  void lose(at::Tensor buffer);
  /// Of all that it ever allocated and did not free.
  std::int64_t bytes() const { return bytes_; }

 private:
  ProcessGroup group_;
  c10::Device device_;
  std::vector<at::Tensor> free_, lost_;
  std::int64_t bytes_ = 0;
};

/// The first `numel` elements of a tensor of bytes.
at::Tensor typed(const at::Tensor& bytes, at::ScalarType type, std::int64_t numel);

}  // namespace fabric::sharded
