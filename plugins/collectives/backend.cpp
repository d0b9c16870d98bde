#include <fabric/plugins/collectives/backend.h>

#include <utility>

#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

#include "fabric/base/registry/registry_internal.h"
#include "fabric/torch/pages_internal.h"
#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/communicator/work.h"

namespace fabric {
namespace {

using collectives::NamedKind;

Registry<BackendKind>& backend_registry() {
  static Registry<BackendKind> all(
      "process group backend",
      {{"gloo", collectives::gloo_kind(), "CPU tensors over TCP, part of LibTorch"},
       {"mpi", collectives::mpi_kind(), "CPU tensors over Open MPI"},
       {"shm", collectives::shm_kind(), "CPU tensors in memory that one machine's ranks share"},
       {"nccl", collectives::nccl_kind(), "CUDA tensors; gloo beside it for the CPU"},
       {"single", collectives::single_kind(), "one rank: nothing is sent"}});
  return all;
}

}  // namespace

CollectiveBackend::CollectiveBackend(c10::intrusive_ptr<c10d::Backend> backend) : backend_(std::move(backend)) {}

CollectiveBackend::~CollectiveBackend() = default;

std::string CollectiveBackend::describe() const { return c10d()->getBackendName(); }

bool CollectiveBackend::reduces(at::ScalarType type, ReduceOp) const {
  switch (type) {
    case at::kByte:
    case at::kChar:
    case at::kInt:
    case at::kLong:
    case at::kHalf:
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble:
      return true;
    default:
      return false;
  }
}

bool CollectiveBackend::agree(std::int64_t mark, const char*) {
  if (!marks_.defined()) marks_ = at::empty({2}, at::kLong);
  auto* both = marks_.mutable_data_ptr<std::int64_t>();
  both[0] = mark;
  both[1] = -mark;
  reduced_.assign(1, marks_);
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  options.asyncOp = false;
  if (auto work = c10d()->allreduce(reduced_, options)) work->wait();
  return both[0] == -both[1];
}

at::Tensor CollectiveBackend::empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const auto bytes = c10::multiply_integers(sizes) * static_cast<std::int64_t>(options.dtype().itemsize());
  if (options.device().is_cpu() && !options.pinned_memory() && bytes >= kLeastPages)
    return pages(sizes, options.dtype().toScalarType());
  return at::empty(sizes, options);
}

std::shared_ptr<CollectiveBackend> CollectiveBackend::subgroup(const BackendRequest&, const std::vector<int>&, int) {
  return nullptr;
}

void CollectiveBackend::close() { c10d()->abort(); }

c10::intrusive_ptr<c10d::Work> finished_work(std::vector<at::Tensor> outputs, int rank, c10d::OpType type) {
  return c10::make_intrusive<collectives::DoneWork>(rank, type, std::move(outputs));
}

void register_backend(const std::string& name, BackendKind kind, bool override_existing, std::string description) {
  if (lower_case(name) == "auto") throw ConfigError("'auto' cannot be the name of a process group backend");
  backend_registry().add(name, std::move(kind), override_existing, std::move(description));
}

std::vector<std::string> available_backends() { return backend_registry().names(); }

std::shared_ptr<CollectiveBackend> make_backend(const std::string& name, const BackendRequest& request) {
  auto [known, kind] = collectives::find_kind(name);
  auto made = kind.make(request);
  if (!made) throw MisuseError("the function registered for process group backend '" + known + "' returned nothing");
  return made;
}

namespace collectives {

NamedKind find_kind(const std::string& name) {
  auto entry = backend_registry().get(name, {"auto"});
  return {entry.name, entry.value};
}

NamedKind best_kind(const RankInfo& ranks, c10::Device device,
                    const std::function<bool(const BackendKind&)>& eligible) {
  NamedKind best;
  int best_number = 0;
  for (auto& [name, kind, description] : backend_registry().entries()) {
    if (!kind.suits || !eligible(kind)) continue;
    int number = kind.suits(ranks, device);
    if (number <= best_number) continue;
    best_number = number;
    best = {name, kind};
  }
  return best;
}

}  // namespace collectives
}  // namespace fabric
