#pragma once

#include <c10/core/Storage.h>

#include "tests/support/sim_device/memory.h"

namespace sim {

/// From here on memory that a kernel asks for as the CPU's is taken from the device it runs on, so that its results
/// need no copy. Everything else gets what it got before.
void take_over_host_allocator();
c10::Allocator& host_allocator();

/// While it lives, this thread runs a kernel on `place`.
class InKernel {
 public:
  InKernel(Place place, const char* op);
  ~InKernel();
  InKernel(const InKernel&) = delete;
  InKernel& operator=(const InKernel&) = delete;

 private:
  Place outer_place_;
  const char* outer_op_;
};

/// The block behind memory that was allocated inside of a kernel, taken away from its storage; null for other memory.
Block* take_block(c10::StorageImpl& storage);

}  // namespace sim
