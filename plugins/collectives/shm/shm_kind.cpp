// How the ranks of one machine come to share memory: rank 0 makes it and tells where by the store; every rank tells
// whether it could open it, so that all go on or none does. Where none does and nobody asked for shared memory by name,
// the ranks take what suits them next (join.cpp).
#include <fabric/base/error.h>

#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/communicator/communicator_backend.h"
#include "plugins/collectives/shm/shm_communicator.h"
#include "plugins/collectives/store/job_store.h"

namespace fabric::collectives {
namespace {

std::vector<std::uint8_t> in_bytes(const std::string& text) { return {text.begin(), text.end()}; }
std::string in_text(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

// What a rank could not do; empty: nothing.
std::string open_segment(const BackendRequest& request, std::unique_ptr<SharedSegment>& segment) {
  try {
    if (request.rank == 0) {
      segment = make_shm_segment(request.size);
      segment->live_as(0);
      request.store->set("shm/place", in_bytes(segment->place()));
    } else {
      auto place = in_text(request.store->get("shm/place"));
      if (place.empty()) return "";  // rank 0 says why
      segment = SharedSegment::open(place);
      segment->live_as(request.rank);
    }
    return "";
  } catch (const UnavailableError& error) {
    if (request.rank == 0) request.store->set("shm/place", in_bytes(""));
    return error.what();
  }
}

std::shared_ptr<CollectiveBackend> make_shm(const BackendRequest& request) {
  std::unique_ptr<SharedSegment> segment;
  auto problem = open_segment(request, segment);
  request.store->set("shm/rank/" + std::to_string(request.rank), in_bytes(problem));
  for (int rank = 0; rank < request.size; ++rank) {
    auto told = in_text(request.store->get("shm/rank/" + std::to_string(rank)));
    if (!told.empty())
      throw UnavailableError("rank " + std::to_string(rank) + ": " + told + ". The backend 'gloo' needs none");
  }
  return make_communicator_backend(
      make_shm_communicator(request.rank, request.size, std::move(segment), request.timeout), {.name = "shm"});
}

void require_one_machine(const BackendRequest& request) {
  if (!is_on_one_machine(request.ranks))
    throw ConfigError(
        "the process group backend 'shm' is for ranks of one machine; this job's are on several. Use "
        "'auto'");
}

}  // namespace

BackendKind shm_kind() {
  return {.make = make_shm,
          .suits =
              [](const RankInfo& ranks, c10::Device device) {
                return device.is_cpu() && ranks.world_size > 1 && is_on_one_machine(ranks) ? 25 : 0;
              },
          .require = require_one_machine,
          .may_be_refused = true};
}

}  // namespace fabric::collectives
