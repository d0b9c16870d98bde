// Part of libtorchfabric_cuda: the only file that sees NCCL's headers.
#include "plugins/collectives/backend_request.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <fabric/base/error.h>
#include <fabric/base/plugin_library_internal.h>

#include <c10/cuda/CUDAFunctions.h>

FABRIC_DEFINE_PLUGIN_ABI()

namespace {

// LibTorch's classes hold NCCL's structs by value, which grow from version to version: the NCCL that LibTorch was built
// with may be newer than the header at hand, and its constructor writes the size it knows. So these objects get room
// to spare, and no member that comes after such a struct is touched here.
template <class T, class... Args>
c10::intrusive_ptr<T> make_roomy(Args&&... args) {
  constexpr std::size_t kRoom = 4096;
  void* memory = ::operator new(sizeof(T) + kRoom);
  try {
    return c10::intrusive_ptr<T>::unsafe_steal_from_new(new (memory) T(std::forward<Args>(args)...));
  } catch (...) {
    ::operator delete(memory);
    throw;
  }
}

}  // namespace

extern "C" FABRIC_API void fabric_make_nccl_backend(const fabric::collectives::BackendRequest& request,
                                                    c10::intrusive_ptr<c10d::Backend>& made) {
  if (c10::cuda::device_count() == 0)
    throw fabric::UnavailableError(
        "the nccl process group needs a CUDA device and its driver; this machine offers none. Use the backend 'gloo'");
  if (!request.device.is_cuda())
    throw fabric::MisuseError("the nccl process group works on CUDA devices, not on '" + request.device.str() +
                              "'. Use the backend 'gloo' or accelerator 'cuda'");
  auto options = make_roomy<c10d::ProcessGroupNCCL::Options>(/*is_high_priority_stream=*/false);
  options->timeout = request.timeout;
  options->group_name = request.name;
  auto nccl = make_roomy<c10d::ProcessGroupNCCL>(request.store, request.rank, request.size, std::move(options));
  if (request.device.has_index()) nccl->setBoundDeviceId(request.device);
  made = std::move(nccl);
}
