#pragma once

#include <chrono>
#include <memory>

#include "plugins/collectives/communicator/communicator.h"
#include "plugins/collectives/shm/shared_segment.h"

namespace fabric::collectives {

/// Ranks of one machine over memory that they share: shm_bytes(size) of it, zero at first, in which this rank lives
/// already. Results do not depend on timing: sums are taken in the order of the ranks.
std::unique_ptr<Communicator> make_shm_communicator(int rank, int size, std::unique_ptr<SharedSegment> segment,
                                                    std::chrono::milliseconds timeout);
std::size_t shm_bytes(int size);

}  // namespace fabric::collectives
