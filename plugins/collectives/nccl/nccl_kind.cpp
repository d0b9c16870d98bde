// The part of the nccl backend that is in libtorchfabric: it loads the rest, which needs libtorch_cuda.
#include "fabric/base/plugin_library_internal.h"
#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/nccl/nccl_backend.h"

namespace fabric::collectives {
namespace {

MakeNccl find_nccl() {
  return reinterpret_cast<MakeNccl>(
      load_plugin_symbol("torchfabric_cuda", kMakeNccl, kPluginAbi,
                         "The nccl process group needs TorchFabric's CUDA library, built with -DFABRIC_WITH_CUDA=ON, "
                         "and the CUDA and NCCL "
                         "libraries of LibTorch at run time. Use the backend 'gloo' on machines without a GPU"));
}

}  // namespace

BackendKind nccl_kind() {
  return {.make =
              [](const BackendRequest& request) {
                std::shared_ptr<CollectiveBackend> made;
                find_nccl()(request, made);
                return made;
              },
          .device = c10::kCUDA,
          .suits = [](const RankInfo&, c10::Device device) { return device.is_cuda() ? 30 : 0; },
          .require = [](const BackendRequest&) { find_nccl(); }};
}

}  // namespace fabric::collectives
