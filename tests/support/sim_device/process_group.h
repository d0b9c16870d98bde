#pragma once

#include <memory>

#include <fabric/plugins/collectives/backend.h>

namespace sim {

/// A group with the semantics of NCCL's: operations run on a stream of the group's own, in the order of the calls,
/// beside the host, which is not held up; Work::wait lets the current stream wait. The bytes go through memory that the
/// ranks share.
std::shared_ptr<fabric::CollectiveBackend> make_process_group(const fabric::BackendRequest& request);

}  // namespace sim
