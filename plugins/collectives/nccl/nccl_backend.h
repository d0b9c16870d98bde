#pragma once

#include <fabric/plugins/collectives/backend.h>

namespace fabric::collectives {

/// Name and type of libtorchfabric_cuda's maker of NCCL backends.
inline constexpr const char* kMakeNccl = "fabric_make_nccl_backend";
using MakeNccl = void (*)(const BackendRequest& request, std::shared_ptr<CollectiveBackend>& made);

}  // namespace fabric::collectives
