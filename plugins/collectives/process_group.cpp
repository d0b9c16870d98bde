#include <fabric/plugins/collectives/process_group.h>

#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>

#include "plugins/collectives/check.h"
#include "plugins/collectives/group.h"
#include "plugins/collectives/join.h"

namespace fabric {

using collectives::Group;

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

ProcessGroup ProcessGroup::create(const Config& config, const RankInfo& ranks, c10::Device device,
                                  std::shared_ptr<EnvReader> env) {
  auto group = std::make_shared<Group>();
  group->id = {.config = config,
               .name = collectives::unique_group_name(""),
               .rank = ranks.rank,
               .size = ranks.world_size,
               .device = device,
               .timeout = collectives::timeout_of(config),
               .ranks = ranks,
               .env = std::move(env)};
  collectives::join_job(*group);
  return ProcessGroup(std::move(group));
}

ProcessGroup ProcessGroup::wrap(c10::intrusive_ptr<c10d::ProcessGroup> torch_group, const Config& config) {
  if (!torch_group) throw MisuseError("ProcessGroup::wrap got an empty pointer; pass LibTorch's group");
  auto group = std::make_shared<Group>();
  group->id = {.config = config,
               .backend = torch_group->getDefaultBackend()->getBackendName(),
               .rank = torch_group->getRank(),
               .size = torch_group->getSize(),
               .timeout = collectives::timeout_of(config)};
  group->transport.wrap(std::move(torch_group), group->id);
  return ProcessGroup(std::move(group));
}

ProcessGroup ProcessGroup::single() { return create({.backend = "single"}, {}, c10::kCPU); }

ProcessGroup::operator bool() const { return impl_ && impl_->id.outside.empty(); }

Group& ProcessGroup::held(const char* operation) const {
  if (!impl_)
    throw MisuseError(std::string(operation) +
                      " was called on an empty ProcessGroup. Make one with ProcessGroup::create, or " +
                      "call it through a Fabric after launch()");
  return *impl_;
}

Group& ProcessGroup::use(const char* operation) const {
  auto& group = held(operation);
  if (!group.id.outside.empty()) throw MisuseError(std::string(operation) + ": " + group.id.outside);
  return group;
}

int ProcessGroup::rank() const { return use("rank").id.rank; }
int ProcessGroup::size() const { return held("size").id.size; }
const ProcessGroup::Config& ProcessGroup::config() const { return held("config").id.config; }
const std::string& ProcessGroup::backend() const { return held("backend").id.backend; }

const c10::intrusive_ptr<c10d::ProcessGroup>& ProcessGroup::c10d() const {
  auto& group = use("c10d");
  group.health.require_usable("c10d");
  return group.transport.torch_group(group.id);
}

std::string ProcessGroup::describe() const {
  auto& group = held("describe");
  auto& transport = group.transport;
  if (!transport.cpu) return group.id.backend;
  return transport.on_device ? transport.on_device->describe() + ", CPU: " + transport.cpu->describe()
                             : transport.cpu->describe();
}

at::Tensor ProcessGroup::empty(at::IntArrayRef sizes, const at::TensorOptions& options) const {
  auto& group = use("empty");
  group.health.require_usable("empty");
  return group.transport.of(options.device()).empty(sizes, options);
}

ProcessGroup ProcessGroup::subgroup(const std::vector<int>& ranks, const std::string& name) const {
  return ProcessGroup(collectives::make_subgroup(use("subgroup"), ranks, name));
}

ProcessGroup ProcessGroup::apart(const std::string& name) const {
  use("apart").health.require_usable("apart");
  return ProcessGroup(collectives::make_apart(impl_, name));
}

bool ProcessGroup::is_usable() const { return use("is_usable").health.usable(); }

void ProcessGroup::wait_for(const char* operation, const c10::intrusive_ptr<c10d::Work>& work) const {
  use("wait_for").run(operation, [&] { return work; });
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
