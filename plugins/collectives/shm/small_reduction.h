#pragma once

#include <cstdint>
#include <cstring>

#include "plugins/collectives/communicator/local_reduction.h"
#include "plugins/collectives/shm/shared_memory_barrier.h"

namespace fabric::collectives {

/// An all-reduce of at most barrier.capacity() bytes, where the ranks meet anyway: each brings its items along, and
/// reduces those of all in the order of the ranks. `meet` passes the barrier.
template <class Meet>
void all_reduce_at_barrier(SharedMemoryBarrier& barrier, void* data, std::int64_t count, at::ScalarType type,
                           ReduceType op, Meet&& meet) {
  auto bytes = static_cast<std::size_t>(count) * c10::elementSize(type);
  if (bytes > 0) std::memcpy(barrier.outbox(), data, bytes);
  meet();
  if (bytes > 0) reduce_in_rank_order(barrier.inbox(0), barrier.stride(), barrier.size(), data, count, type, op);
}

}  // namespace fabric::collectives
