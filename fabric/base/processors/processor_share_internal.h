#pragma once

#include <fabric/base/env_reader.h>

namespace fabric {

/// How many processors one of `local_world_size` ranks on this node should use, at least 1. `own`: how many this
/// process may run on; `of_parent`: how many the process that started it may. Nobody says whether a mask is shared,
/// hence:
/// - A task of srun given --cpus-per-task: as many as that says, and no more than `own`. Ranks that a launcher started
///   inside a task are known by LOCAL_RANK, those that are yet to be started by too few tasks.
/// - A rank of mpirun, whose parent is mpirun or its daemon: its share of what the parent has, and no more than `own`.
///   So it has its mask when that is its own (--map-by slot:PE=n) and a part when several ranks are bound to one
///   socket.
/// - Everybody else shares the mask with the other ranks.
int processor_share(const EnvReader& env, int own, int of_parent, int local_world_size);
/// The same for this process, whose variables are `env`.
int processor_share(const EnvReader& env, int local_world_size);

}  // namespace fabric
