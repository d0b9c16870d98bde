// The only file that sees LibTorch's Gloo header. The wheel ships that header without Gloo's own, so gloo_headers/
// declares what it needs.
#define USE_C10D_GLOO
#include "fabric/torch/gloo_internal.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "fabric/base/broken_pipe_internal.h"
#include "fabric/torch/exchange_internal.h"

namespace fabric::torch_gloo {
namespace {

class ClosableGloo : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;
  bool busy() {
    std::lock_guard lock(workMutex_);
    bool any = !workQueue_.empty();
    for (const auto& work : workInProgress_) any = any || work;
    return any || exchanges_.is_busy();
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
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    if (!is_exchanged(output, input) || output.numel() != input.numel() * getSize())
      return ProcessGroupGloo::_allgather_base(output, input, options);
    auto places = output.view({getSize(), -1}).unbind();
    std::vector<at::Tensor> sent(places.size(), input), arriving = places;
    auto work = exchange(arriving, sent, {output, input}, {}, c10d::OpType::_ALLGATHER_BASE);
    places[static_cast<std::size_t>(getRank())].copy_(input.view({-1}));  // while the others travel
    return work;
  }
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                      const c10d::ReduceScatterOptions& options) override {
    if (!is_exchanged(output, input) || input.numel() != output.numel() * getSize() ||
        options.reduceOp != c10d::ReduceOp::SUM)
      return ProcessGroupGloo::_reduce_scatter_base(output, input, options);
    const auto self = static_cast<std::size_t>(getRank());
    auto sent = input.view({getSize(), -1}).unbind();
    std::vector<at::Tensor> arriving(sent.size()), buffers;
    for (std::size_t rank = 0; rank < sent.size(); ++rank) {
      if (rank == self) continue;
      buffers.push_back(arrivals_->take(static_cast<std::int64_t>(output.nbytes())));
      arriving[rank] =
          buffers.back().narrow(0, 0, static_cast<std::int64_t>(output.nbytes())).view(output.scalar_type());
    }
    auto add = [arrivals = arrivals_, out = output.view({-1}), own = sent[self], arriving, buffers, self]() mutable {
      arriving.erase(arriving.begin() + static_cast<std::ptrdiff_t>(self));
      add_in_order(out, own, arriving, static_cast<int>(self));
      for (auto& buffer : buffers) arrivals->give(std::move(buffer));
    };
    return exchange(arriving, sent, {output, input}, std::move(add), c10d::OpType::_REDUCE_SCATTER_BASE);
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

 private:
  bool is_exchanged(const at::Tensor& output, const at::Tensor& input) {
    return getSize() > 1 && input.numel() > 0 && input.is_cpu() && output.is_cpu() && input.is_contiguous() &&
           output.is_contiguous() && !input.is_complex() && input.scalar_type() == output.scalar_type();
  }
  // One tensor to and from each other rank. Receives come first: Gloo then writes them where they belong.
  c10::intrusive_ptr<c10d::Work> exchange(const std::vector<at::Tensor>& arriving, const std::vector<at::Tensor>& sent,
                                          std::vector<at::Tensor> kept, std::function<void()> last, c10d::OpType type) {
    constexpr int kTags = 1 << 29;  // from here on; a program's own are below
    const int tag = kTags + (exchange_number_ = (exchange_number_ + 1) % kTags);
    Exchange::Works works;
    works.reserve(2 * arriving.size());
    for (int step = 1; step < getSize(); ++step) {
      const int from = (getRank() + getSize() - step) % getSize();
      std::vector<at::Tensor> one{arriving[static_cast<std::size_t>(from)]};
      works.push_back(recv(one, from, tag));
    }
    for (int step = 1; step < getSize(); ++step) {
      const int to = (getRank() + step) % getSize();
      std::vector<at::Tensor> one{sent[static_cast<std::size_t>(to)]};
      works.push_back(send(one, to, tag));
    }
    auto made = c10::make_intrusive<Exchange>(std::move(works), std::move(kept), std::move(last), type);
    exchanges_.add(made, options_->timeout);
    return made;
  }

  int exchange_number_ = 0;
  std::shared_ptr<ArrivalPool> arrivals_ = std::make_shared<ArrivalPool>();
  ExchangeThread exchanges_;
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
