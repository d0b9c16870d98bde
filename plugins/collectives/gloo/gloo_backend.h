#pragma once

#include "plugins/collectives/backend_request.h"

namespace fabric::collectives {

/// LibTorch's Gloo process group; connects to all ranks, at most the timeout. Throws what LibTorch throws.
c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendRequest& request);
/// Closes the connections to the other ranks, upon which operations that these wait in fail as well.
void break_connections(c10d::Backend& backend);
/// Gives a backend up without waiting for operations that are still in flight: where there are some, a thread holds it
/// until they are over. Freeing it would otherwise wait for them.
void release_without_waiting(c10::intrusive_ptr<c10d::Backend> backend);

}  // namespace fabric::collectives
