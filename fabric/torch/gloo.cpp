// The only file that sees LibTorch's Gloo header. The wheel ships that header without Gloo's own, so gloo_headers/
// declares what it needs.
#define USE_C10D_GLOO
#include "fabric/torch/gloo_internal.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "fabric/base/broken_pipe_internal.h"

namespace fabric::torch_gloo {
namespace {

class ClosableGloo : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;
  bool busy() {
    std::lock_guard lock(workMutex_);
    bool any = !workQueue_.empty();
    for (const auto& work : workInProgress_) any = any || work;
    return any;
  }
  void break_connections() {
    for (auto& context : contexts_) context->closeConnections();
  }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    auto work = ProcessGroupGloo::allreduce(tensors, options);
    if (started) started(work);
    return work;
  }
  // These write in the calling thread; all else does in threads that take no SIGPIPE.
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int rank, int tag) override {
    IgnoreBrokenPipe guard;
    return ProcessGroupGloo::send(tensors, rank, tag);
  }
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int rank, int tag) override {
    IgnoreBrokenPipe guard;
    return ProcessGroupGloo::recv(tensors, rank, tag);
  }
  c10::intrusive_ptr<c10d::Work> recvAnysource(std::vector<at::Tensor>& tensors, int tag) override {
    IgnoreBrokenPipe guard;
    return ProcessGroupGloo::recvAnysource(tensors, tag);
  }

  std::function<void(c10::intrusive_ptr<c10d::Work>)> started;
};

}  // namespace

c10::intrusive_ptr<c10d::Backend> make(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                       std::chrono::milliseconds timeout, const std::string& address) {
  IgnoreBrokenPipe in_its_threads;
  using Options = c10d::ProcessGroupGloo::Options;
  auto options = address.empty() ? Options::create_default(timeout) : Options::create(timeout);
  options->timeout = timeout;
  if (!address.empty()) options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
  return c10::make_intrusive<ClosableGloo>(store, rank, size, std::move(options));
}

bool is_ours(c10d::Backend& backend) { return dynamic_cast<ClosableGloo*>(&backend) != nullptr; }

void on_all_reduce(c10d::Backend& made, std::function<void(c10::intrusive_ptr<c10d::Work>)> started) {
  static_cast<ClosableGloo&>(made).started = std::move(started);
}

bool is_busy(c10d::Backend& made) { return static_cast<ClosableGloo&>(made).busy(); }

void close_connections(c10d::Backend& made) { static_cast<ClosableGloo&>(made).break_connections(); }

}  // namespace fabric::torch_gloo
