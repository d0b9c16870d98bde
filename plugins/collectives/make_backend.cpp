#include "plugins/collectives/make_backend.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <exception>

#include <ATen/ops/zeros.h>

#include <fabric/base/env_reader.h>
#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>
#include <fabric/base/plugin_library_internal.h>

#include "plugins/collectives/check.h"
#include "plugins/collectives/gloo/gloo_backend.h"
#include "plugins/collectives/mpi/mpi_backend.h"
#include "plugins/collectives/plain_number.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/store/job_store.h"

namespace fabric::collectives {
namespace {

MakeMpi find_mpi() {
  return reinterpret_cast<MakeMpi>(load_plugin_symbol(
      "torchfabric_mpi", kMakeMpi, kPluginAbi,
      "The mpi process group needs Open MPI: install libopenmpi-dev (Debian), build TorchFabric again with "
      "-DFABRIC_WITH_MPI=ON, or use the backend 'gloo'"));
}

MakeNccl find_nccl() {
  return reinterpret_cast<MakeNccl>(
      load_plugin_symbol("torchfabric_cuda", kMakeNccl, kPluginAbi,
                         "The nccl process group needs TorchFabric's CUDA library, built with -DFABRIC_WITH_CUDA=ON, "
                         "and the CUDA and NCCL "
                         "libraries of LibTorch at run time. Use the backend 'gloo' on machines without a GPU"));
}

bool has_mpi() {
  try {
    find_mpi();
    return true;
  } catch (const UnavailableError& error) {
    log::rank_zero_warn(std::string("started by mpirun, but the process group uses gloo: ") + error.what());
    return false;
  }
}

std::string resolve(const Group& group) {
  const auto& wish = group.config.backend;
  static const std::vector<std::string> kNames{"auto", "gloo", "mpi", "nccl"};
  if (std::find(kNames.begin(), kNames.end(), wish) == kNames.end())
    throw ConfigError("unknown process group backend '" + wish + "'" + did_you_mean(wish, kNames));
  if (wish != "auto") return wish;
  if (group.device.is_cuda()) return "nccl";
  if (group.size == 1) return "single";
  return group.ranks.source == "mpi" && has_mpi() ? "mpi" : "gloo";
}

BackendRequest request_of(const Group& group, const std::string& part) {
  return {.store = sub_store(part, group.store),
          .rank = group.rank,
          .size = group.size,
          .timeout = group.timeout,
          .device = group.device,
          .name = group.name,
          .ranks = group.ranks};
}

void connect_over_store(Group& group) {
  auto begin = std::chrono::steady_clock::now();
  meet(*group.store, "joining the process group", group.rank, group.size, group.timeout);
  group.run("connecting the ranks", [&]() -> c10::intrusive_ptr<c10d::Work> {
    group.cpu = make_gloo(request_of(group, "gloo"));
    if (group.backend == "nccl") find_nccl()(request_of(group, "nccl"), group.on_device);
    return nullptr;
  });
  auto took = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begin);
  log::debug("process group " + group.name + " over " + group.backend + ": " + std::to_string(took.count()) + " ms");
}

void require_same_job(const Group& group, const MpiBackend& mpi) {
  if (mpi.getSize() == group.size && mpi.getRank() == group.rank) return;
  auto seen = "rank " + std::to_string(mpi.getRank()) + " of " + std::to_string(mpi.getSize());
  auto told = "rank " + std::to_string(group.rank) + " of " + std::to_string(group.size);
  throw ConfigError("MPI says that this process is " + seen + ", the environment says " + told +
                    (mpi.getSize() == 1 ? ". MPI was not started with this job: use mpirun, or srun --mpi=pmix"
                                        : ". Start the job with mpirun alone, or use the backend 'gloo'"));
}

// Open MPI would end such a process with a page about how SLURM was built.
void require_common_job(const Group& group) {
  if (group.ranks.source != "slurm" || group.size == 1) return;
  auto env = process_env();
  for (const char* name : {"PMIX_RANK", "PMI_RANK", "PMI_FD"})
    if (env->has(name)) return;
  throw ConfigError("srun started " + std::to_string(group.size) +
                    " tasks that MPI knows nothing of: each would be an MPI job of its own. Use srun --mpi=pmix, or "
                    "mpirun inside the allocation, or the backend 'gloo'");
}

MpiOptions mpi_options(const Group& group, const void* communicator) {
  constexpr double kMebi = 1 << 20;
  return {.communicator = communicator,
          .timeout = group.timeout,
          .rank = group.rank,
          .overlap_bytes = static_cast<std::int64_t>(group.config.mpi_overlap_mb * kMebi)};
}

struct MeetingPoint {
  char address[HOST_NAME_MAX + 1] = {};
  int port = 0;  // 0: rank 0 could not serve it
};

MeetingPoint serve_meeting_point(const Group& group) {
  MeetingPoint point;
  bool one_machine = group.ranks.local_world_size == group.size;
  if (one_machine || gethostname(point.address, HOST_NAME_MAX) != 0) std::strcpy(point.address, "127.0.0.1");
  point.port = serve_job_store(point.address, group.timeout);
  return point;
}

// mpirun names no place where the ranks could meet, but over MPI rank 0 can tell the others one.
void find_meeting_point(Group& group) {
  MakeMpi make = nullptr;
  try {
    make = find_mpi();
  } catch (const UnavailableError& error) {
    log::debug(error.what());
    return;  // what can be set instead is in the error that follows
  }
  auto options = mpi_options(group, nullptr);
  options.overlap_bytes = 0;
  c10::intrusive_ptr<MpiBackend> mpi;
  make(options, mpi);
  require_same_job(group, *mpi);
  MeetingPoint point;
  std::exception_ptr failure;
  try {
    if (group.rank == 0) point = serve_meeting_point(group);
  } catch (...) {
    failure = std::current_exception();  // the others, who wait, are told first
  }
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof point);
  std::vector<at::Tensor> message{at::zeros({kBytes}, at::kByte)};
  std::memcpy(message[0].mutable_data_ptr(), &point, sizeof point);
  group.run("telling the ranks where to meet", [&] { return mpi->broadcast(message, c10d::BroadcastOptions()); });
  if (failure) std::rethrow_exception(failure);
  std::memcpy(&point, message[0].const_data_ptr(), sizeof point);
  if (point.port == 0)
    throw CollectiveError("rank " + std::to_string(group.rank) +
                          " cannot join: rank 0 could not serve the job's store; its own error says why");
  group.ranks.main_address = point.address;
  group.ranks.main_port = point.port;
}

void take_mpi(Group& group, c10::intrusive_ptr<MpiBackend> mpi) {
  group.backend = "mpi";
  group.mpi = mpi.get();
  group.rank = mpi->getRank();
  group.size = mpi->getSize();
  group.cpu = std::move(mpi);
}

}  // namespace

void set_timeout(Group& group) {
  double seconds = group.config.timeout_seconds;
  constexpr double kLongest = 1e9;
  if (!(seconds > 0) || seconds > kLongest)
    throw ConfigError("timeout_seconds is " + plain_number(seconds) + "; it has to be above 0 and at most 1e9");
  group.timeout = std::chrono::milliseconds(std::max<std::int64_t>(1, std::llround(seconds * 1000)));
}

void join_job(Group& group) {
  const auto& ranks = group.ranks;
  if (ranks.world_size < 1 || ranks.rank < 0 || ranks.rank >= ranks.world_size)
    throw ConfigError("rank " + std::to_string(ranks.rank) + " of a world of " + std::to_string(ranks.world_size) +
                      " cannot be: ranks count from 0 to the world's size less one");
  group.backend = resolve(group);
  if (group.backend == "single") return;
  if (group.backend == "mpi") {
    require_common_job(group);
    c10::intrusive_ptr<MpiBackend> mpi;
    find_mpi()(mpi_options(group, nullptr), mpi);
    require_same_job(group, *mpi);
    take_mpi(group, std::move(mpi));
    return;
  }
  if (group.backend == "nccl") find_nccl();  // says what is missing before any waiting
  if (group.size > 1 && ranks.source == "mpi" && ranks.main_port == 0) find_meeting_point(group);
  group.store = group.size == 1 ? open_private_store() : open_job_store(ranks, group.timeout);
  connect_over_store(group);
}

void join_communicator(Group& group, const void* mpi_comm) {
  c10::intrusive_ptr<MpiBackend> mpi;
  find_mpi()(mpi_options(group, mpi_comm), mpi);
  take_mpi(group, std::move(mpi));
}

std::shared_ptr<Group> make_subgroup(Group& parent, std::vector<int> ranks, const std::string& name) {
  std::sort(ranks.begin(), ranks.end());
  if (ranks.empty() || std::adjacent_find(ranks.begin(), ranks.end()) != ranks.end())
    throw MisuseError("subgroup needs a list of different ranks; this one is empty or names a rank twice");
  for (int rank : ranks) require_rank("subgroup", "a member", rank, parent.size);
  if (parent.backend != "single" && !parent.mpi && !parent.store)
    throw MisuseError(
        "a group made by ProcessGroup::wrap cannot be split, since its store is LibTorch's. Split it with "
        "LibTorch and wrap the parts");
  std::string label = name + ": " + list_of_ranks(ranks);
  verify(parent, {.operation = "subgroup", .label = &label});
  int number = parent.subgroups++;
  auto place = std::find(ranks.begin(), ranks.end(), parent.rank);

  auto group = std::make_shared<Group>();
  group->config = parent.config;
  group->device = parent.device;
  group->timeout = parent.timeout;
  group->backend = parent.backend;
  group->ranks = parent.ranks;
  group->name = name;
  group->size = static_cast<int>(ranks.size());
  if (place == ranks.end()) {
    group->outside = "this rank is not in the group " + (name.empty() ? "" : "'" + name + "' ") + "of " +
                     list_of_ranks(ranks) + ". Let its members alone call it: if (group) …";
    return group;
  }
  group->rank = static_cast<int>(place - ranks.begin());
  if (parent.backend == "single") return group;
  if (parent.mpi) {
    take_mpi(*group, parent.mpi->subgroup(ranks, number));
    return group;
  }
  group->store = sub_store("sub/" + std::to_string(number), parent.store);
  connect_over_store(*group);
  return group;
}

}  // namespace fabric::collectives
