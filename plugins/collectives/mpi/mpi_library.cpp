// The door of libtorchfabric_mpi.
#include "plugins/collectives/mpi/mpi_library.h"

#include "fabric/base/plugin_library_internal.h"
#include "plugins/collectives/communicator/communicator_backend.h"
#include "plugins/collectives/mpi/mpi_communicator.h"

FABRIC_DEFINE_PLUGIN_ABI()

extern "C" FABRIC_API void fabric_make_mpi_backend(const fabric::collectives::MpiOptions& options,
                                                   std::shared_ptr<fabric::CollectiveBackend>& made) {
  using namespace fabric::collectives;
  made = make_communicator_backend(open_mpi(options), {.name = "mpi", .overlap_bytes = options.overlap_bytes});
}
