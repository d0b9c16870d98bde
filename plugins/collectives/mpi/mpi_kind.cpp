// The part of the mpi backend that is in libtorchfabric: it loads the rest, which needs Open MPI.
#include <fabric/base/log.h>

#include "fabric/base/plugin_library_internal.h"
#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/join.h"
#include "plugins/collectives/mpi/mpi_library.h"

namespace fabric {
namespace collectives {
namespace {

MakeMpi find_mpi() {
  return reinterpret_cast<MakeMpi>(load_plugin_symbol(
      "torchfabric_mpi", kMakeMpi, kPluginAbi,
      "The mpi process group needs Open MPI: install libopenmpi-dev (Debian), build TorchFabric again with "
      "-DFABRIC_WITH_MPI=ON, or use the backend 'gloo'"));
}

bool has_mpi() {
  try {
    find_mpi();
    return true;
  } catch (const UnavailableError& error) {
    static std::once_flag said;
    std::call_once(said, [&] {
      log::rank_zero_warn(std::string("started by mpirun, but the process group cannot use MPI: ") + error.what());
    });
    return false;
  }
}

// Open MPI would end such a process with a page about how SLURM was built.
void require_common_job(const BackendRequest& request) {
  if (request.ranks.source != "slurm" || request.size == 1) return;
  for (const char* name : {"PMIX_RANK", "PMI_RANK", "PMI_FD"})
    if (request.env->has(name)) return;
  throw ConfigError("srun started " + std::to_string(request.size) +
                    " tasks that MPI knows nothing of: each would be an MPI job of its own. Use srun --mpi=pmix, or "
                    "mpirun inside the allocation, or the backend 'gloo'");
}

void require_same_job(const BackendRequest& request, const c10d::Backend& mpi) {
  if (mpi.getSize() == request.size && mpi.getRank() == request.rank) return;
  auto seen = "rank " + std::to_string(mpi.getRank()) + " of " + std::to_string(mpi.getSize());
  auto told = "rank " + std::to_string(request.rank) + " of " + std::to_string(request.size);
  throw ConfigError("MPI says that this process is " + seen + ", the environment says " + told +
                    (mpi.getSize() == 1 ? ". MPI was not started with this job: use mpirun, or srun --mpi=pmix"
                                        : ". Start the job with mpirun alone, or use the backend 'gloo'"));
}

std::shared_ptr<CollectiveBackend> make_mpi(const BackendRequest& request, const void* communicator) {
  constexpr double kMebi = 1 << 20;
  std::shared_ptr<CollectiveBackend> made;
  find_mpi()({.communicator = communicator,
              .timeout = request.timeout,
              .rank = request.rank,
              .overlap_bytes = static_cast<std::int64_t>(request.config.mpi_overlap_mb * kMebi)},
             made);
  return made;
}

}  // namespace

BackendKind mpi_kind() {
  return {.make =
              [](const BackendRequest& request) {
                auto mpi = make_mpi(request, nullptr);
                require_same_job(request, *mpi->c10d());
                return mpi;
              },
          .needs_store = false,
          .suits =
              [](const RankInfo& ranks, c10::Device device) {
                return ranks.source == "mpi" && ranks.world_size > 1 && device.is_cpu() && has_mpi() ? 20 : 0;
              },
          .require =
              [](const BackendRequest& request) {
                require_common_job(request);
                find_mpi();
              }};
}

}  // namespace collectives

ProcessGroup ProcessGroup::from_mpi_comm(const Config& config, const void* mpi_comm) {
  if (!mpi_comm) throw MisuseError("from_mpi_comm got a null pointer; pass the address of your MPI_Comm");
  if (config.backend != "auto" && config.backend != "mpi")
    throw ConfigError("from_mpi_comm makes a group over MPI, but backend is '" + config.backend +
                      "'. Set it to mpi or auto");
  auto group = std::make_shared<collectives::Group>();
  auto& id = group->id;
  id.config = config;
  id.backend = "mpi";
  id.name = collectives::unique_group_name("");
  id.timeout = collectives::timeout_of(config);
  auto mpi = collectives::make_mpi(collectives::request_of(id), mpi_comm);
  id.rank = mpi->c10d()->getRank();
  id.size = mpi->c10d()->getSize();
  group->transport.cpu = std::move(mpi);
  return ProcessGroup(std::move(group));
}

}  // namespace fabric
