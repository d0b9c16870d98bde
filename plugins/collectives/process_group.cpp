#include <fabric/plugins/collectives/process_group.h>

#include <atomic>

#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>
#include <fabric/base/plugin_library_internal.h>

#include "plugins/collectives/check.h"
#include "plugins/collectives/gloo/gloo_backend.h"
#include "plugins/collectives/group.h"
#include "plugins/collectives/make_backend.h"
#include "plugins/collectives/store/job_store.h"

namespace fabric {

using collectives::Group;

namespace {

std::string unique_name(const std::string& wish) {
  static std::atomic<int> count{0};
  return "fabric/" + (wish.empty() ? "group" : wish) + "/" + std::to_string(count++);
}

}  // namespace

ReduceOp parse_reduce_op(const std::string& name) {
  if (name == "mean" || name == "avg") return ReduceOp::mean;
  if (name == "sum") return ReduceOp::sum;
  if (name == "min") return ReduceOp::min;
  if (name == "max") return ReduceOp::max;
  if (name == "product" || name == "prod") return ReduceOp::product;
  static const std::vector<std::string> kNames{"mean", "avg", "sum", "min", "max", "product", "prod"};
  throw ConfigError("unknown reduce operation '" + name + "'" + did_you_mean(name, kNames));
}

ProcessGroup::ProcessGroup(std::shared_ptr<Group> impl) : impl_(std::move(impl)) {}

ProcessGroup ProcessGroup::create(const Config& config, const RankInfo& ranks, c10::Device device) {
  auto group = std::make_shared<Group>();
  group->config = config;
  group->rank = ranks.rank;
  group->size = ranks.world_size;
  group->device = device;
  group->ranks = ranks;
  group->name = unique_name("");
  collectives::set_timeout(*group);
  collectives::join_job(*group);
  return ProcessGroup(std::move(group));
}

ProcessGroup ProcessGroup::from_mpi_comm(const Config& config, const void* mpi_comm) {
  if (!mpi_comm) throw MisuseError("from_mpi_comm got a null pointer; pass the address of your MPI_Comm");
  if (config.backend != "auto" && config.backend != "mpi")
    throw ConfigError("from_mpi_comm makes a group over MPI, but backend is '" + config.backend +
                      "'. Set it to mpi or auto");
  auto group = std::make_shared<Group>();
  group->config = config;
  group->name = unique_name("");
  collectives::set_timeout(*group);
  collectives::join_communicator(*group, mpi_comm);
  return ProcessGroup(std::move(group));
}

ProcessGroup ProcessGroup::wrap(c10::intrusive_ptr<c10d::ProcessGroup> torch_group, const Config& config) {
  if (!torch_group) throw MisuseError("ProcessGroup::wrap got an empty pointer; pass LibTorch's group");
  auto group = std::make_shared<Group>();
  group->config = config;
  group->rank = torch_group->getRank();
  group->size = torch_group->getSize();
  group->backend = torch_group->getDefaultBackend()->getBackendName();
  collectives::set_timeout(*group);
  for (auto type : torch_group->getDeviceTypes()) {
    if (type.type() == c10::kCPU)
      group->cpu = torch_group->getBackend(c10::kCPU);
    else
      group->device = type, group->on_device = torch_group->getBackend(type.type());
  }
  if (!group->cpu)
    throw MisuseError(
        "the LibTorch group has no backend for CPU tensors, which checks and values travel as. Make it with "
        "one, for instance gloo beside nccl");
  group->owned = false;
  group->torch_group = std::move(torch_group);
  return ProcessGroup(std::move(group));
}

ProcessGroup ProcessGroup::single() {
  auto group = std::make_shared<Group>();
  group->backend = "single";
  group->name = unique_name("single");
  collectives::set_timeout(*group);
  return ProcessGroup(std::move(group));
}

ProcessGroup::operator bool() const { return impl_ && impl_->outside.empty(); }

Group& ProcessGroup::held(const char* operation) const {
  if (!impl_)
    throw MisuseError(std::string(operation) +
                      " was called on an empty ProcessGroup. Make one with ProcessGroup::create, or " +
                      "call it through a Fabric after launch()");
  return *impl_;
}

Group& ProcessGroup::use(const char* operation) const {
  auto& group = held(operation);
  if (!group.outside.empty()) throw MisuseError(std::string(operation) + ": " + group.outside);
  return group;
}

int ProcessGroup::rank() const { return use("rank").rank; }
int ProcessGroup::size() const { return held("size").size; }
const ProcessGroup::Config& ProcessGroup::config() const { return held("config").config; }
const std::string& ProcessGroup::backend() const { return held("backend").backend; }

const c10::intrusive_ptr<c10d::ProcessGroup>& ProcessGroup::c10d() const {
  auto& group = use("c10d");
  group.require_usable("c10d");
  if (!group.torch_group) {
    if (!group.cpu)
      group.cpu = collectives::make_gloo(
          {.store = collectives::open_private_store(), .timeout = group.timeout, .name = group.name});
    group.torch_group = collectives::assemble(group);
  }
  return group.torch_group;
}

ProcessGroup ProcessGroup::subgroup(const std::vector<int>& ranks, const std::string& name) const {
  auto made = collectives::make_subgroup(use("subgroup"), ranks, name);
  made->name = unique_name(name);
  return ProcessGroup(std::move(made));
}

void ProcessGroup::require_same(const char* operation, const std::string& what) const {
  collectives::verify(use(operation), {.operation = operation, .label = &what});
}

void ProcessGroup::report_failure(const char* operation, const std::exception& error,
                                  std::chrono::steady_clock::time_point begin) const {
  impl_->fail(operation, error, begin);
}

void ProcessGroup::shutdown() {
  if (impl_) impl_->close();
}

}  // namespace fabric
