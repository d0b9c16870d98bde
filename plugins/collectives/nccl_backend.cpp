// Part of libtorchfabric_cuda: the only file that sees NCCL's headers.
#include "plugins/collectives/backend_request.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <fabric/error.h>
#include <fabric/plugin_library.h>

#include <c10/cuda/CUDAFunctions.h>

FABRIC_DEFINE_PLUGIN_ABI()

extern "C" FABRIC_API void fabric_make_nccl_backend(const fabric::collectives::BackendRequest& request,
                                                    c10::intrusive_ptr<c10d::Backend>& made) {
  if (c10::cuda::device_count() == 0)
    throw fabric::UnavailableError(
        "the nccl process group needs a CUDA device and its driver; this machine offers none. Use the backend 'gloo'");
  if (!request.device.is_cuda())
    throw fabric::MisuseError("the nccl process group works on CUDA devices, not on '" + request.device.str() +
                              "'. Use the backend 'gloo' or accelerator 'cuda'");
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = request.timeout;
  options->group_name = request.name;
  auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(request.store, request.rank, request.size, options);
  if (request.device.has_index()) nccl->setBoundDeviceId(request.device);
  made = nccl;
}
