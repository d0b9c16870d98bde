#include <fabric/base/log.h>
#include <fabric/launcher/launching.h>
#include <fabric/strategies/strategy.h>

#include <ATen/Parallel.h>

#include <unistd.h>

#include <algorithm>
#include <climits>

#include "launcher/start/plan.h"
#include "strategies/dp/gather_with_grad.h"

namespace fabric {
namespace {

/// The ranks of a group that the caller made. It says nothing of machines, so they tell one another where they run.
RankInfo places_in(const ProcessGroup& group) {
  char host[HOST_NAME_MAX + 1] = {};
  gethostname(host, HOST_NAME_MAX);
  auto hosts = group.all_gather_value(Value(std::string(host)));
  RankInfo ranks{.world_size = group.size(), .rank = group.rank(), .local_world_size = 0, .num_nodes = 0};
  std::vector<std::string> nodes;
  for (int rank = 0; rank < group.size(); ++rank) {
    std::string node = hosts[rank].as_string();
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) {
      if (node == host) ranks.node_rank = static_cast<int>(nodes.size());
      nodes.push_back(node);
    }
    if (node != host) continue;
    ++ranks.local_world_size;
    if (rank < group.rank()) ++ranks.local_rank;
  }
  ranks.num_nodes = static_cast<int>(nodes.size());
  return ranks;
}

}  // namespace

void ParallelStrategy::set_cluster_environment(std::shared_ptr<ClusterEnvironment> environment) {
  environment_ = std::move(environment);
  ranks_ = environment_->rank_info();
}

void ParallelStrategy::set_devices(std::vector<c10::Device> devices) { devices_ = std::move(devices); }

void ParallelStrategy::set_process_group(ProcessGroup group) {
  ranks_.rank = group.rank();  // throws where there is no group
  ranks_.world_size = group.size();
  group_ = std::move(group);
  group_is_given_ = true;
}

c10::Device ParallelStrategy::root_device() const {
  if (devices_.empty() || devices_.front().is_cpu()) return c10::kCPU;
  // Some schedulers let each rank see one device, its own.
  if (devices_.size() == 1) return devices_.front();
  auto index = static_cast<std::size_t>(ranks_.local_rank);
  if (index >= devices_.size())
    throw ConfigError("local rank " + std::to_string(index) + " has no device: only " +
                      std::to_string(devices_.size()) +
                      " were asked for. Set `devices` to the number of ranks on this node");
  return devices_[index];
}

std::unique_ptr<Launcher> ParallelStrategy::make_launcher() {
  if (group_is_given_) return nullptr;
  auto method = start_method();
  // A rank that was started to run a function hands its result over to the launcher.
  bool runs_function = method == "spawn" && env_->has(kLaunchedVariable);
  if (environment_ && environment_->creates_processes_externally() && !runs_function) return nullptr;
  // What other devices' drivers hold does not survive in a copy of the process.
  if (method == "auto" && !root_device().is_cpu()) method = "popen";
  return fabric::make_launcher(method, {.num_processes = std::max<int>(1, static_cast<int>(devices_.size())),
                                        .num_nodes = num_nodes_,
                                        .node_rank = environment_ ? environment_->node_rank() : 0});
}

void ParallelStrategy::setup_environment() {
  if (group_is_given_)
    ranks_ = places_in(group_);
  else if (environment_)
    ranks_ = environment_->rank_info();
  log::set_rank(ranks_.world_size > 1 ? ranks_.rank : -1);
  accelerator()->setup_device(root_device());
  // Without a word from the user, ranks share the node's cores instead of each taking all.
  if (!env_->has("OMP_NUM_THREADS") && ranks_.local_world_size > 1)
    at::set_num_threads(accelerator()->threads_per_rank(ranks_.local_world_size, *env_));
  if (group_is_given_) return;
  log::debug("joining " + ranks_.to_string());
  group_ = ProcessGroup::create(group_config_, ranks_, root_device(), env_);
  log::rank_zero_info("process group: " + std::to_string(group_.size()) + (group_.size() == 1 ? " rank" : " ranks") +
                      " over " + group_.backend());
}

std::optional<Strategy::SamplerShard> ParallelStrategy::sampler_shard() const {
  return SamplerShard{ranks_.world_size, ranks_.rank};
}

namespace {
const ProcessGroup& group_or(const ProcessGroup& group, const ProcessGroup& fallback) {
  return group.is_set() ? group : fallback;
}
}  // namespace

at::Tensor ParallelStrategy::all_reduce(const at::Tensor& tensor, ReduceOp op, const ProcessGroup& group) {
  return group_or(group, group_).all_reduce(tensor, op);
}

void ParallelStrategy::all_reduce_(at::Tensor& tensor, ReduceOp op, const ProcessGroup& group) {
  group_or(group, group_).all_reduce_(tensor, op);
}

std::vector<at::Tensor> ParallelStrategy::all_gather(const at::Tensor& tensor, const ProcessGroup& group,
                                                     bool sync_grads) {
  const auto& over = group_or(group, group_);
  if (sync_grads && tensor.requires_grad()) return gather_with_grad(tensor, over);
  return over.all_gather(tensor, /*uneven=*/true);
}

Value ParallelStrategy::broadcast(const Value& value, int src) { return group_.broadcast_value(value, src); }

void ParallelStrategy::barrier(const std::string& name) { group_.barrier(name); }

bool ParallelStrategy::reduce_boolean_decision(bool decision, bool all) {
  return all ? group_.all(decision) : group_.any(decision);
}

void ParallelStrategy::teardown() {
  if (!group_is_given_) group_.shutdown();
  group_ = ProcessGroup::single();
  if (environment_) environment_->teardown();
  Strategy::teardown();
}

}  // namespace fabric
