#pragma once

#include <cstddef>
#include <string>

#include <ATen/core/Tensor.h>

#include "tests/support/sim_device/order.h"

namespace sim {

/// Page-locked host memory. While a copy that nobody waited for may still read it, the host's view is read-only; while
/// one may still write it, the host's view is closed. So raw pointers are watched, too.
void map_pinned_memory();
bool is_pinned(const void* address);
c10::Allocator& pinned_allocator();

/// A copy's view of pinned memory: the tensor over the kernels' view of the same bytes, noted as used by `now`. Other
/// tensors are returned as they are.
at::Tensor for_copy(const at::Tensor& host_tensor, bool writes, const Access& now);
/// From here on the copy that `now` is owns the tensor's bytes, until the host waits for it.
void begin_flight(const at::Tensor& host_tensor, bool into_host, const Access& now);
/// Ends the flights that the host has waited for.
void settle_flights();
/// The host used memory that a copy owns: reports it and opens the page. False for other memory.
bool pinned_fault(const void* address, const std::string& use);

}  // namespace sim
