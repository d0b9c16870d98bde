// Part of libtorchfabric_cuda: the only file that sees NCCL's headers.
#include "plugins/collectives/nccl/nccl_backend.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <fabric/base/error.h>

#include "fabric/base/plugin_library_internal.h"
#include "fabric/torch/roomy_internal.h"

#include <c10/cuda/CUDAFunctions.h>

FABRIC_DEFINE_PLUGIN_ABI()

namespace {

class NcclBackend : public fabric::CollectiveBackend {
 public:
  using CollectiveBackend::CollectiveBackend;
  bool divides(at::ScalarType type) const override { return at::isFloatingType(type); }
};

}  // namespace

extern "C" FABRIC_API void fabric_make_nccl_backend(const fabric::BackendRequest& request,
                                                    std::shared_ptr<fabric::CollectiveBackend>& made) {
  if (c10::cuda::device_count() == 0)
    throw fabric::UnavailableError(
        "the nccl process group needs a CUDA device and its driver; this machine offers none. Use the backend 'gloo'");
  // LibTorch's classes hold NCCL's structs by value, which grow from version to version: the NCCL that LibTorch was
  // built with may be newer than the header at hand, and its constructor writes the size it knows. No member that comes
  // after such a struct is touched here.
  using fabric::Roomy;
  auto options = c10::make_intrusive<Roomy<c10d::ProcessGroupNCCL::Options>>(/*is_high_priority_stream=*/false);
  options->timeout = request.timeout;
  options->group_name = request.name;
  auto nccl = c10::make_intrusive<Roomy<c10d::ProcessGroupNCCL>>(request.store, request.rank, request.size, options);
  if (request.device.has_index()) nccl->setBoundDeviceId(request.device);
  made = std::make_shared<NcclBackend>(std::move(nccl));
}
