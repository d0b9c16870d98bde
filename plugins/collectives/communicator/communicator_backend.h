#pragma once

#include <fabric/plugins/collectives/backend.h>

#include "plugins/collectives/communicator/communicator.h"

namespace fabric::collectives {

struct CommunicatorBackendOptions {
  /// c10d's name of the backend.
  std::string name;
  /// All-reduces that the caller does not wait for and that have this many bytes run in a thread; 0: none do.
  std::int64_t overlap_bytes = 0;
};

/// A backend over a communicator: tensors of any type and stride, in the operations that c10d knows.
FABRIC_API std::shared_ptr<CollectiveBackend> make_communicator_backend(std::unique_ptr<Communicator> communicator,
                                                                        const CommunicatorBackendOptions& options);

}  // namespace fabric::collectives
