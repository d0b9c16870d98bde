#pragma once

#include <chrono>
#include <memory>

#include "plugins/collectives/communicator/communicator.h"
#include "plugins/collectives/shm/shared_segment.h"

namespace fabric::collectives {

/// Ranks of one machine over memory that they share: make_shm_segment(size), in which this rank lives already. Results
/// do not depend on timing: sums are taken in the order of the ranks.
std::unique_ptr<Communicator> make_shm_communicator(int rank, int size, std::unique_ptr<SharedSegment> segment,
                                                    std::chrono::milliseconds timeout);
/// What the ranks need to meet, and behind it as much for the tensors of each as the machine has memory, of which
/// nothing is taken before it is used.
std::unique_ptr<SharedSegment> make_shm_segment(int size);

}  // namespace fabric::collectives
