#include "plugins/collectives/join.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <numeric>

#include <ATen/ops/zeros.h>

#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>

#include "fabric/base/broken_pipe_internal.h"
#include "fabric/torch/gloo_internal.h"
#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/check.h"
#include "plugins/collectives/plain_number.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/store/job_store.h"
#include "plugins/collectives/waits/wait_board.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

bool chooses(const Identity& id) { return lower_case(id.config.backend) == "auto"; }

// `below`: what suited better turned out not to be there.
NamedKind choose_kind(const Identity& id, int below = std::numeric_limits<int>::max()) {
  if (!chooses(id)) return find_kind(id.config.backend);
  auto best = best_kind(id.ranks, id.device,
                        [&](const BackendKind& kind) { return kind.suits && kind.suits(id.ranks, id.device) < below; });
  if (best.name.empty())
    throw ConfigError("no process group backend suits rank " + id.ranks.to_string() + " on " + id.device.str() +
                      "; name one");
  return best;
}

void require_ready(const BackendKind& kind, const BackendRequest& request) {
  if (kind.require) kind.require(request);
}

struct MeetingPoint {
  char address[HOST_NAME_MAX + 1] = {};
  int port = 0;  // 0: rank 0 could not serve it
};

MeetingPoint serve_meeting_point(const Identity& id) {
  MeetingPoint point;
  if (is_on_one_machine(id.ranks) || gethostname(point.address, HOST_NAME_MAX) != 0)
    std::strcpy(point.address, "127.0.0.1");
  point.port = serve_job_store(id.ranks, point.address);
  return point;
}

// mpirun names no place where the ranks could meet, but a backend that finds its peers without one (MPI) lets rank 0
// tell the others.
void find_meeting_point(Group& group) {
  auto& id = group.id;
  auto [name, kind] = best_kind(id.ranks, c10::kCPU,
                                [](const BackendKind& each) { return each.device == c10::kCPU && !each.needs_store; });
  if (name.empty()) return;  // what can be set instead is in the error that follows
  auto request = request_of(id);
  request.config.mpi_overlap_mb = 0;
  auto messenger = make_backend(name, request);
  MeetingPoint point;
  std::exception_ptr failure;
  try {
    if (id.rank == 0) point = serve_meeting_point(id);
  } catch (...) {
    failure = std::current_exception();  // the others, who wait, are told first
  }
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof point);
  std::vector<at::Tensor> message{at::zeros({kBytes}, at::kByte)};
  std::memcpy(message[0].mutable_data_ptr(), &point, sizeof point);
  group.run("telling the ranks where to meet", [&] { return messenger->c10d()->broadcast(message); });
  messenger->close();
  if (failure) std::rethrow_exception(failure);
  std::memcpy(&point, message[0].const_data_ptr(), sizeof point);
  if (point.port == 0)
    throw CollectiveError("rank " + std::to_string(id.rank) +
                          " cannot join: rank 0 could not serve the job's store; its own error says why");
  id.ranks.main_address = point.address;
  id.ranks.main_port = point.port;
}

// Makes the backends of a group whose kind and, where it needs one, store are known. In a subgroup each backend of
// `parent` may make its own part.
class Connecting {
 public:
  Connecting(Group& group, const NamedKind& chosen) : group_(group), chosen_(chosen) {}
  void of_job() {
    connect([](CollectiveBackend*, const BackendRequest&) { return std::shared_ptr<CollectiveBackend>(); }, nullptr);
  }
  void of_subgroup(Group& parent, const std::vector<int>& ranks, int number) {
    connect([&](CollectiveBackend* whole,
                const BackendRequest& request) { return whole->subgroup(request, ranks, number); },
            &parent.transport);
  }

 private:
  template <class Part>
  void connect(Part&& part, const Transport* parent) {
    auto begin = steady_clock::now();
    auto make = [&](const NamedKind& kind, CollectiveBackend* whole) {
      if (whole)
        if (auto made = part(whole, request_of(group_.id))) return made;
      return make_anew(kind);
    };
    bool on_cpu = chosen_.kind.device == c10::kCPU;
    auto for_cpu = on_cpu ? chosen_ : find_kind(chosen_.kind.beside);
    auto& transport = group_.transport;
    transport.cpu = make(for_cpu, parent ? parent->cpu.get() : nullptr);
    if (!on_cpu) transport.on_device = make(chosen_, parent ? parent->on_device.get() : nullptr);
    auto took = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
    log::debug("process group " + group_.id.name + " over " + group_.id.backend + ": " + std::to_string(took.count()) +
               " ms");
  }
  std::shared_ptr<CollectiveBackend> make_anew(const NamedKind& kind) {
    auto request = request_of(group_.id);
    if (kind.kind.needs_store) {
      meet_once();
      request.store = sub_store(kind.name, group_.transport.store);
    }
    std::shared_ptr<CollectiveBackend> made;
    IgnoreBrokenPipe in_threads_of_the_backend;
    group_.run("connecting the ranks", [&]() -> c10::intrusive_ptr<c10d::Work> {
      made = make_backend(kind.name, request);
      return nullptr;
    });
    return made;
  }
  void meet_once() {
    if (std::exchange(has_met_, true)) return;
    const auto& id = group_.id;
    meet(*group_.transport.store, "joining the process group", id.rank, id.size, id.timeout);
  }

  Group& group_;
  const NamedKind& chosen_;
  bool has_met_ = false;
};

// Where the ranks of the job tell one another what they wait for.
void join_waits(Group& group, const NamedKind& chosen) {
  auto for_cpu = chosen.kind.device == c10::kCPU ? chosen.name : chosen.kind.beside;
  if (group.id.size == 1 || for_cpu != "gloo") return;
  std::vector<int> all(static_cast<std::size_t>(group.id.size));
  std::iota(all.begin(), all.end(), 0);
  group.board = std::make_shared<WaitBoard>(group.transport.store, group.id.rank, group.id.size, /*answers=*/true);
  group.lane = group.board->add_lane("", std::move(all), &group);
}

void share_waits(Group& group, const Group& parent, const std::string& name, const std::vector<int>& ranks) {
  if (!parent.board) return;
  std::vector<int> members;
  for (int rank : ranks) members.push_back(parent.lane->members[static_cast<std::size_t>(rank)]);
  group.board = parent.board;
  group.lane = group.board->add_lane(parent.lane->name + "/" + name, std::move(members), &group);
}

bool needs_store(const BackendKind& kind) {
  return kind.needs_store || (kind.device != c10::kCPU && find_kind(kind.beside).kind.needs_store);
}

void join_over(Group& group, const NamedKind& chosen) {
  auto& id = group.id;
  id.backend = chosen.name;
  require_ready(chosen.kind, request_of(id));  // says what is missing before any waiting
  if (chosen.kind.device != c10::kCPU && chosen.kind.device != id.device.type())
    throw ConfigError("process group backend '" + chosen.name + "' carries tensors on " +
                      c10::DeviceTypeName(chosen.kind.device, /*lower_case=*/true) + ", but this rank's device is " +
                      id.device.str() + ". Use the backend 'auto', or another accelerator");
  if (needs_store(chosen.kind)) {
    if (id.size > 1 && id.ranks.main_port == 0) find_meeting_point(group);
    if (!group.transport.store)
      group.transport.store = id.size == 1 ? open_private_store() : open_job_store(id.ranks, id.timeout);
    join_waits(group, chosen);
  }
  Connecting(group, chosen).of_job();
}

}  // namespace

std::string unique_group_name(const std::string& wish) {
  static std::atomic<int> count{0};
  return "fabric/" + (wish.empty() ? "group" : wish) + "/" + std::to_string(count++);
}

milliseconds timeout_of(const ProcessGroup::Config& config) {
  double seconds = config.timeout_seconds;
  constexpr double kLongest = 1e9;
  if (!(seconds > 0) || seconds > kLongest)
    throw ConfigError("timeout_seconds is " + plain_number(seconds) + "; it has to be above 0 and at most 1e9");
  return milliseconds(std::max<std::int64_t>(1, std::llround(seconds * 1000)));
}

BackendRequest request_of(const Identity& id) {
  return {.store = nullptr,
          .rank = id.rank,
          .size = id.size,
          .timeout = id.timeout,
          .device = id.device,
          .name = id.name,
          .ranks = id.ranks,
          .config = id.config,
          .env = id.env};
}

void join_job(Group& group) {
  auto& id = group.id;
  const auto& ranks = id.ranks;
  if (ranks.world_size < 1 || ranks.rank < 0 || ranks.rank >= ranks.world_size)
    throw ConfigError("rank " + std::to_string(ranks.rank) + " of a world of " + std::to_string(ranks.world_size) +
                      " cannot be: ranks count from 0 to the world's size less one");
  auto chosen = choose_kind(id);
  while (true) {
    try {
      return join_over(group, chosen);
    } catch (const UnavailableError& error) {
      // What the system refuses to one rank all ranks do without, and all of them know it.
      if (!chooses(id) || !chosen.kind.may_be_refused) throw;
      chosen = choose_kind(id, chosen.kind.suits(ranks, id.device));
      log::rank_zero_warn("the process group goes over " + chosen.name + ": " + error.what());
    }
  }
}

std::shared_ptr<Group> make_subgroup(Group& parent, std::vector<int> ranks, const std::string& name) {
  std::sort(ranks.begin(), ranks.end());
  if (ranks.empty() || std::adjacent_find(ranks.begin(), ranks.end()) != ranks.end())
    throw MisuseError("subgroup needs a list of different ranks; this one is empty or names a rank twice");
  for (int rank : ranks) require_rank("subgroup", "a member", rank, parent.id.size);
  if (!parent.transport.owned)
    throw MisuseError(
        "a group made by ProcessGroup::wrap cannot be split, since its store is LibTorch's. Split it with "
        "LibTorch and wrap the parts");
  std::string label = name + ": " + list_of_ranks(ranks);
  verify(parent, {.operation = "subgroup", .label = &label});
  int number = parent.transport.subgroups++;
  auto place = std::find(ranks.begin(), ranks.end(), parent.id.rank);

  auto group = std::make_shared<Group>();
  group->id = parent.id;
  group->id.name = unique_group_name(name);
  group->id.size = static_cast<int>(ranks.size());
  if (place == ranks.end()) {
    group->id.outside = "this rank is not in the group " + (name.empty() ? "" : "'" + name + "' ") + "of " +
                        list_of_ranks(ranks) + ". Let its members alone call it: if (group) …";
    return group;
  }
  group->id.rank = static_cast<int>(place - ranks.begin());
  if (parent.transport.store)
    group->transport.store = sub_store("sub/" + std::to_string(number), parent.transport.store);
  share_waits(*group, parent, std::to_string(number), ranks);
  auto kind = find_kind(parent.id.backend);
  Connecting(*group, kind).of_subgroup(parent, ranks, number);
  return group;
}

std::shared_ptr<Group> make_apart(const std::shared_ptr<Group>& parent, const std::string& name) {
  if (parent->id.backend != "gloo" || !parent->board) return parent;
  if (!torch_gloo::is_ours(*parent->transport.cpu->c10d())) return parent;
  verify(*parent, {.operation = "connecting the ranks once more", .label = &name});
  auto number = std::to_string(parent->transport.subgroups++);
  auto group = std::make_shared<Group>();
  group->id = parent->id;
  group->id.name = unique_group_name(name);
  group->transport.store = sub_store("apart/" + number, parent->transport.store);
  std::vector<int> all(static_cast<std::size_t>(group->id.size));
  std::iota(all.begin(), all.end(), 0);
  share_waits(*group, *parent, name + number, all);
  auto kind = find_kind("gloo");
  Connecting(*group, kind).of_job();
  group->watch_all_reduces();
  return group;
}

}  // namespace fabric::collectives
