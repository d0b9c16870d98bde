// LibTorch's view of a communicator: tensors of any type and stride, in the operations that c10d knows. Operations run
// in the calling thread and are done when they are returned, but for sends, receives and what overlaps with backward.
#include "plugins/collectives/communicator/communicator_backend.h"

#include <numeric>
#include <utility>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/collectives/communicator/local_reduction.h"
#include "plugins/collectives/communicator/overlap.h"
#include "plugins/collectives/communicator/tensor_reduction.h"
#include "plugins/collectives/communicator/work.h"

namespace fabric::collectives {
namespace {

using c10::intrusive_ptr;
using c10d::OpType;
using c10d::Work;
using Tensors = std::vector<at::Tensor>;

const at::Tensor& only(const Tensors& tensors, const char* operation) {
  if (tensors.size() != 1)
    throw MisuseError(std::string(operation) + " takes one tensor a call, got " + std::to_string(tensors.size()));
  return tensors.front();
}

void require_cpu(const at::Tensor& tensor, const char* operation) {
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided)
    throw MisuseError(std::string(operation) + " takes dense CPU tensors; this one's layout is " +
                      c10::str(tensor.layout()) + " and its device " + tensor.device().str() +
                      ". Sparse (COO) tensors have a sum and a mean, by all_reduce");
}

// The tensor's memory in one piece; a copy that must be brought back where it is not.
at::Tensor in_one_piece(const at::Tensor& tensor, const char* operation) {
  require_cpu(tensor, operation);
  return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg()
             ? tensor
             : tensor.resolve_conj().resolve_neg().contiguous();
}

void bring_back(const at::Tensor& piece, const at::Tensor& tensor) {
  if (!piece.is_same(tensor)) tensor.copy_(piece);
}

void reduce_whole(Communicator& communicator, const at::Tensor& tensor, const c10d::ReduceOp& op) {
  auto piece = in_one_piece(tensor, "all_reduce");
  all_reduce_piece(communicator, piece, op);
  bring_back(piece, tensor);
}

// Allreduce, broadcast and so on of c10d.
class CommunicatorGroup : public c10d::Backend {
 public:
  CommunicatorGroup(std::unique_ptr<Communicator> communicator, CommunicatorBackendOptions options)
      : c10d::Backend(communicator->rank(), communicator->size()),
        communicator_(std::move(communicator)),
        options_(std::move(options)),
        done_(c10::make_intrusive<DoneWork>(communicator_->rank(), OpType::ALLREDUCE, Tensors{})) {
    if (options_.overlap_bytes <= 0) return;
    if (communicator_->allows_threads())
      overlap_ = std::make_unique<Overlap>(communicator_->duplicate());
    else
      log::rank_zero_warn(std::string(communicator_->what()) +
                          " was initialised for one thread alone, so all-reduces do not overlap with backward");
  }
  Communicator& communicator() { return *communicator_; }
  const CommunicatorBackendOptions& options() const { return options_; }

  const std::string getBackendName() const override { return options_.name; }
  void setTimeout(std::chrono::milliseconds timeout) override {
    communicator_->set_timeout(timeout);
    if (overlap_) overlap_->set_timeout(timeout);
  }
  void abort() override {}

  intrusive_ptr<Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    const auto& tensor = only(tensors, "all_reduce");
    auto op = options.reduceOp;
    if (tensor.is_sparse() && tensor.is_cpu()) {
      all_reduce_sparse(*communicator_, tensor, op);
      return options.asyncOp ? done(OpType::ALLREDUCE, tensors) : done_;
    }
    require_cpu(tensor, "all_reduce");
    if (overlap_ && options.asyncOp && static_cast<std::int64_t>(tensor.nbytes()) >= options_.overlap_bytes)
      return reduce_in_thread(tensor, op, tensors);
    reduce_whole(*communicator_, tensor, op);
    return options.asyncOp ? done(OpType::ALLREDUCE, tensors) : done_;
  }
  intrusive_ptr<Work> allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    for (const auto& tensor : tensors) reduce_whole(*communicator_, tensor, options.reduceOp);
    return done(OpType::ALLREDUCE_COALESCED, tensors);
  }
  intrusive_ptr<Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    const auto& tensor = only(tensors, "broadcast");
    auto piece = in_one_piece(tensor, "broadcast");
    communicator_->broadcast(piece.mutable_data_ptr(), bytes(piece), static_cast<int>(options.rootRank));
    bring_back(piece, tensor);
    return options.asyncOp ? done(OpType::BROADCAST, tensors) : done_;
  }
  intrusive_ptr<Work> reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    const auto& tensor = only(tensors, "reduce");
    auto piece = in_one_piece(tensor, "reduce");
    Communicator::Op op = options.reduceOp;
    auto real = real_of(piece, op);
    auto root = static_cast<int>(options.rootRank);
    communicator_->reduce(real.mutable_data_ptr(), real.numel(), real.scalar_type(), op, root);
    if (op == Communicator::Op::AVG && root == getRank()) divide(piece, getSize());
    if (root == getRank()) bring_back(piece, tensor);
    return done(OpType::REDUCE, tensors);
  }
  intrusive_ptr<Work> allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                const c10d::AllgatherOptions&) override {
    auto input = in_one_piece(only(inputs, "all_gather"), "all_gather");
    auto flat = at::empty({getSize() * input.numel()}, input.options());
    communicator_->all_gather(input.const_data_ptr(), flat.mutable_data_ptr(), bytes(input));
    spread(flat, outputs.at(0));
    return done(OpType::ALLGATHER, outputs[0]);
  }
  // The old names of these two are what every supported LibTorch calls, directly or through the new ones.
  intrusive_ptr<Work> _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions&) override {
    auto from = in_one_piece(input, "all_gather");
    auto to = in_one_piece(output, "all_gather");
    require_multiple(to, from, "all_gather");
    communicator_->all_gather(from.const_data_ptr(), to.mutable_data_ptr(), bytes(from));
    bring_back(to, output);
    return done(OpType::_ALLGATHER_BASE, {output});
  }
  intrusive_ptr<Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                           const c10d::ReduceScatterOptions& options) override {
    auto from = in_one_piece(input, "reduce_scatter");
    auto to = in_one_piece(output, "reduce_scatter");
    require_multiple(from, to, "reduce_scatter");
    Communicator::Op op = options.reduceOp;
    auto real_from = real_of(from, op), real_to = real_of(to, op);
    communicator_->reduce_scatter(real_from.const_data_ptr(), real_to.mutable_data_ptr(), real_to.numel(),
                                  real_to.scalar_type(), op);
    if (op == Communicator::Op::AVG) divide(to, getSize());
    bring_back(to, output);
    return done(OpType::_REDUCE_SCATTER_BASE, {output});
  }
  intrusive_ptr<Work> allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                      const c10d::AllgatherOptions& options) override {
    for (std::size_t i = 0; i < inputs.size(); ++i) _allgather_base(outputs.at(i), inputs[i], options);
    return done(OpType::COALESCED, outputs);
  }
  intrusive_ptr<Work> reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                      const c10d::ReduceScatterOptions& options) override {
    for (std::size_t i = 0; i < inputs.size(); ++i) _reduce_scatter_base(outputs.at(i), inputs[i], options);
    return done(OpType::COALESCED, outputs);
  }
  intrusive_ptr<Work> reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                     const c10d::ReduceScatterOptions& options) override {
    auto flat = flattened(inputs.at(0), "reduce_scatter");
    at::Tensor output = only(outputs, "reduce_scatter");
    auto flat_output = at::empty({output.numel()}, output.options());
    _reduce_scatter_base(flat_output, flat, options);
    output.copy_(flat_output.view(output.sizes()));
    return done(OpType::REDUCE_SCATTER, outputs);
  }
  intrusive_ptr<Work> gather(std::vector<Tensors>& outputs, Tensors& inputs,
                             const c10d::GatherOptions& options) override {
    auto input = in_one_piece(only(inputs, "gather"), "gather");
    bool here = options.rootRank == getRank();
    auto flat = here ? at::empty({getSize() * input.numel()}, input.options()) : at::Tensor();
    communicator_->gather(input.const_data_ptr(), here ? flat.mutable_data_ptr() : nullptr, bytes(input),
                          static_cast<int>(options.rootRank));
    if (here) spread(flat, outputs.at(0));
    return done(OpType::GATHER, here ? outputs[0] : Tensors{});
  }
  intrusive_ptr<Work> scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                              const c10d::ScatterOptions& options) override {
    const auto& output = only(outputs, "scatter");
    auto piece = in_one_piece(output, "scatter");
    bool here = options.rootRank == getRank();
    auto flat = here ? flattened(inputs.at(0), "scatter") : at::Tensor();
    communicator_->scatter(here ? flat.const_data_ptr() : nullptr, piece.mutable_data_ptr(), bytes(piece),
                           static_cast<int>(options.rootRank));
    bring_back(piece, output);
    return done(OpType::SCATTER, outputs);
  }
  intrusive_ptr<Work> alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<std::int64_t>& output_sizes,
                                    std::vector<std::int64_t>& input_sizes, const c10d::AllToAllOptions&) override {
    auto from = in_one_piece(input, "all_to_all");
    auto to = in_one_piece(output, "all_to_all");
    communicator_->all_to_all(from.const_data_ptr(), split_bytes(from, input_sizes), to.mutable_data_ptr(),
                              split_bytes(to, output_sizes));
    bring_back(to, output);
    return done(OpType::ALLTOALL_BASE, {output});
  }
  intrusive_ptr<Work> alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions&) override {
    auto from = flattened(inputs, "all_to_all");
    std::vector<std::int64_t> sent, received;
    std::int64_t items = 0;
    for (const auto& input : inputs) sent.push_back(bytes(input));
    for (const auto& output : outputs) {
      received.push_back(bytes(output));
      items += output.numel();
    }
    auto to = at::empty({items}, from.options());
    communicator_->all_to_all(from.const_data_ptr(), sent, to.mutable_data_ptr(), received);
    spread(to, outputs);
    return done(OpType::ALLTOALL, outputs);
  }
  intrusive_ptr<Work> send(Tensors& tensors, int rank, int tag) override {
    auto piece = in_one_piece(only(tensors, "send"), "send");
    return c10::make_intrusive<PendingWork>(getRank(), OpType::SEND, communicator_->send(piece, rank, tag), piece,
                                            at::Tensor());
  }
  intrusive_ptr<Work> recv(Tensors& tensors, int rank, int tag) override {
    return receive(tensors, rank, tag, OpType::RECV);
  }
  intrusive_ptr<Work> recvAnysource(Tensors& tensors, int tag) override {
    return receive(tensors, -1, tag, OpType::RECVANYSOURCE);
  }
  intrusive_ptr<Work> barrier(const c10d::BarrierOptions&) override {
    communicator_->barrier();
    return done(OpType::BARRIER, {});
  }

 private:
  static std::int64_t bytes(const at::Tensor& tensor) { return static_cast<std::int64_t>(tensor.nbytes()); }

  intrusive_ptr<Work> done(OpType type, Tensors outputs) const {
    return c10::make_intrusive<DoneWork>(getRank(), type, std::move(outputs));
  }
  intrusive_ptr<Work> reduce_in_thread(const at::Tensor& tensor, const c10d::ReduceOp& op, const Tensors& tensors) {
    auto work = c10::make_intrusive<ThreadWork>(getRank(), OpType::ALLREDUCE, tensors);
    overlap_->add([work, tensor, op](Communicator& communicator) {
      try {
        reduce_whole(communicator, tensor, op);
        work->succeed();
      } catch (...) {
        work->fail(std::current_exception());
      }
    });
    return work;
  }
  intrusive_ptr<Work> receive(Tensors& tensors, int rank, int tag, OpType type) {
    const auto& tensor = only(tensors, "recv");
    auto piece = in_one_piece(tensor, "recv");
    return c10::make_intrusive<PendingWork>(getRank(), type, communicator_->receive(piece, rank, tag), piece, tensor);
  }
  void require_multiple(const at::Tensor& large, const at::Tensor& small, const char* operation) const {
    if (large.numel() != small.numel() * getSize() || large.scalar_type() != small.scalar_type())
      throw MisuseError(std::string(operation) + ": the larger tensor needs the smaller one's type and " +
                        std::to_string(getSize()) + " times its items, one part for each rank; got " +
                        std::to_string(large.numel()) + " and " + std::to_string(small.numel()));
  }
  Tensors::value_type flattened(const Tensors& tensors, const char* operation) const {
    if (static_cast<int>(tensors.size()) != getSize())
      throw MisuseError(std::string(operation) + " needs one tensor for each of the " + std::to_string(getSize()) +
                        " ranks");
    Tensors flat;
    for (const auto& tensor : tensors) flat.push_back(in_one_piece(tensor, operation).view({-1}));
    return at::cat(flat);
  }
  static void spread(const at::Tensor& flat, Tensors& outputs) {
    std::int64_t begin = 0;
    for (auto& output : outputs) {
      output.copy_(flat.narrow(0, begin, output.numel()).view(output.sizes()));
      begin += output.numel();
    }
  }
  // Sizes count along the first dimension; none means equal parts.
  std::vector<std::int64_t> split_bytes(const at::Tensor& tensor, const std::vector<std::int64_t>& sizes) const {
    if (sizes.empty()) return std::vector<std::int64_t>(static_cast<std::size_t>(getSize()), bytes(tensor) / getSize());
    auto rows = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    if (static_cast<int>(sizes.size()) != getSize() || rows != (tensor.dim() > 0 ? tensor.size(0) : 1))
      throw MisuseError(
          "all_to_all: the split sizes have to be one for each rank and to add up to the first dimension");
    auto each = rows > 0 ? bytes(tensor) / rows : 0;
    std::vector<std::int64_t> result;
    for (auto size : sizes) result.push_back(size * each);
    return result;
  }

  std::unique_ptr<Communicator> communicator_;
  CommunicatorBackendOptions options_;
  intrusive_ptr<Work> done_;  // for callers that wait inside the call: nothing is allocated then
  std::unique_ptr<Overlap> overlap_;
};

class CommunicatorBackend : public CollectiveBackend {
 public:
  explicit CommunicatorBackend(intrusive_ptr<CommunicatorGroup> group) : CollectiveBackend(group), group_(*group) {}
  bool reduces(at::ScalarType type, ReduceOp op) const override {
    using Type = Communicator::Op;
    switch (op) {
      case ReduceOp::mean:
      case ReduceOp::sum:
        return can_reduce(type, Type::SUM);
      case ReduceOp::min:
        return can_reduce(type, Type::MIN);
      case ReduceOp::max:
        return can_reduce(type, Type::MAX);
      case ReduceOp::product:
        return can_reduce(type, Type::PRODUCT);
    }
    return false;
  }
  bool divides(at::ScalarType) const override { return true; }
  bool agree(std::int64_t mark, const char* operation) override { return group_.communicator().agree(mark, operation); }
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) override {
    return group_.communicator().empty(sizes, options);
  }
  std::shared_ptr<CollectiveBackend> subgroup(const BackendRequest&, const std::vector<int>& ranks,
                                              int number) override {
    auto subset = group_.communicator().subset(ranks, number);
    return subset ? make_communicator_backend(std::move(subset), group_.options()) : nullptr;
  }
  void break_connections() override { group_.communicator().break_connections(); }
  void close() override {}

 private:
  CommunicatorGroup& group_;
};

}  // namespace

at::Tensor Communicator::empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

std::shared_ptr<CollectiveBackend> make_communicator_backend(std::unique_ptr<Communicator> communicator,
                                                             const CommunicatorBackendOptions& options) {
  return std::make_shared<CommunicatorBackend>(
      c10::make_intrusive<CommunicatorGroup>(std::move(communicator), options));
}

}  // namespace fabric::collectives
