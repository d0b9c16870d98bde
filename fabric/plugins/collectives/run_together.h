#pragma once

#include <functional>
#include <string>

#include <fabric/base/error.h>
#include <fabric/plugins/collectives/process_group.h>

namespace fabric {

/// Runs `work` on this rank, then tells all ranks of `group` how it went, so that none waits for one that failed. Every
/// rank calls it. When `work` failed anywhere, every rank throws: the first rank that failed decides of which class
/// (ErrorKind), the others say "rank 1: its words". A rank whose own exception is of that class, or of no class of this
/// library, throws its own; for exceptions of other families the other ranks throw the class of `foreign`.
/// Ranks that are in different operations throw MismatchError with the name of each.
FABRIC_API void run_together(const ProcessGroup& group, const std::string& operation, const std::function<void()>& work,
                             ErrorKind foreign = ErrorKind::other);

}  // namespace fabric
