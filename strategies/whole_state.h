#pragma once

#include <unordered_set>

#include <fabric/plugins/collectives/process_group.h>
#include <fabric/state/sharding.h>

namespace fabric {

/// The whole state of a job, on the rank that writes it.
struct WholeState {
  Value values;  // on other ranks than 0 of no use
  /// Tensors that were made here, which nobody changes any more.
  std::unordered_set<const void*> fresh;
};

/// Brings the parts of all ranks together on rank 0. Every rank calls it. Throws CheckpointError on every rank where
/// the parts do not make up whole tensors.
WholeState gather_whole_state(StatePart part, const ProcessGroup& group);

/// Throws CheckpointError when a path of `part.shards` leads to no tensor, or to two.
void require_sound(const StatePart& part);

}  // namespace fabric
