#pragma once

#include <fabric/plugins/collectives/backend.h>

namespace fabric::collectives {

/// LibTorch's Gloo process group; connects to all ranks, at most the timeout. Throws what LibTorch throws.
std::shared_ptr<CollectiveBackend> make_gloo(const BackendRequest& request);

}  // namespace fabric::collectives
