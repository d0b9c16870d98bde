#pragma once

#include "plugins/collectives/backend_request.h"

namespace fabric::collectives {

/// LibTorch's Gloo process group; connects to all ranks, at most the timeout. Throws what LibTorch throws.
c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendRequest& request);
/// Makes operations still in flight fail at once, so that freeing the backend waits for no peer.
void release_without_waiting(c10d::Backend& backend);

}  // namespace fabric::collectives
