// LibTorch's view of a group over MPI: tensors of any type and stride, in the operations that c10d knows.
#include "plugins/collectives/mpi/mpi_backend.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sparse_coo_tensor.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/base/plugin_library_internal.h>

#include "plugins/collectives/mpi/mpi_lane.h"
#include "plugins/collectives/mpi/mpi_work.h"

FABRIC_DEFINE_PLUGIN_ABI()

namespace fabric::collectives {
namespace {

using c10::intrusive_ptr;
using c10d::OpType;
using c10d::Work;
using Tensors = std::vector<at::Tensor>;

// All-reduces in a thread beside backward: over a communicator of their own, one after another. Which ones go there
// depends on their size alone, so every rank sends the same ones, in the same order.
class Overlap {
 public:
  using Job = std::function<void(MpiLane&)>;

  explicit Overlap(std::unique_ptr<MpiLane> lane) : shared_(std::make_shared<Shared>()) {
    shared_->lane = std::move(lane);
    thread_ = std::thread([shared = shared_] { shared->run(); });
  }
  // A job may wait for a peer, which this must not: the thread is left to itself then. It may also be the one that is
  // here, where what a job held was the last to hold this.
  ~Overlap() {
    if (shared_->stop_if_idle(thread_.get_id() == std::this_thread::get_id())) {
      thread_.join();
      shared_->lane.reset();
    } else {
      thread_.detach();
    }
  }
  void add(Job job) {
    std::lock_guard lock(shared_->mutex);
    shared_->jobs.push_back(std::move(job));
    shared_->changed.notify_all();
  }
  void set_timeout(std::chrono::milliseconds timeout) { shared_->lane->set_timeout(timeout); }

 private:
  struct Shared {
    std::unique_ptr<MpiLane> lane;
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Job> jobs;
    bool running = false;
    bool stop = false;
    bool left_to_itself = false;

    // A job whose result is there already has a moment to end.
    bool stop_if_idle(bool in_its_thread) {
      constexpr std::chrono::milliseconds kMoment{100};
      std::unique_lock lock(mutex);
      stop = true;
      changed.notify_all();
      left_to_itself = in_its_thread || !changed.wait_for(lock, kMoment, [this] { return !running && jobs.empty(); });
      return !left_to_itself;
    }
    void run() {
      std::unique_lock lock(mutex);
      while (true) {
        changed.wait(lock, [&] { return stop || !jobs.empty(); });
        if (jobs.empty()) break;
        auto job = std::move(jobs.front());
        jobs.pop_front();
        running = true;
        lock.unlock();
        job(*lane);
        job = nullptr;  // whatever goes with it may come back here
        lock.lock();
        running = false;
        changed.notify_all();
      }
      // Its communicator is never freed: the process may be in MPI_Finalize by now.
      if (left_to_itself) static_cast<void>(lane.release());
    }
  };
  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

const at::Tensor& only(const Tensors& tensors, const char* operation) {
  if (tensors.size() != 1)
    throw MisuseError(std::string(operation) + " over MPI takes one tensor a call, got " +
                      std::to_string(tensors.size()));
  return tensors.front();
}

void require_cpu(const at::Tensor& tensor, const char* operation) {
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided)
    throw MisuseError(std::string(operation) + " over MPI takes dense CPU tensors; this one's layout is " +
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

template <class Integer>
void divide_each(at::Tensor& tensor, int size) {
  auto* data = tensor.mutable_data_ptr<Integer>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) data[i] /= static_cast<Integer>(size);
}

void divide(at::Tensor& tensor, int size) {
  switch (tensor.scalar_type()) {
    case at::kBool:
      return;
    // LibTorch has no division of these.
    case at::kUInt16:
      return divide_each<std::uint16_t>(tensor, size);
    case at::kUInt32:
      return divide_each<std::uint32_t>(tensor, size);
    case at::kUInt64:
      return divide_each<std::uint64_t>(tensor, size);
    default:
      break;
  }
  if (tensor.is_floating_point() || tensor.is_complex())
    tensor.div_(size);
  else
    tensor.div_(size, "trunc");
}

// What MPI reduces: complex numbers as pairs of real ones.
at::Tensor real_of(const at::Tensor& piece, MpiLane::Op op) {
  if (!piece.is_complex()) return piece;
  if (op != MpiLane::Op::SUM && op != MpiLane::Op::AVG)
    throw MisuseError("complex tensors have a sum and a mean, but no other reduction");
  return at::view_as_real(piece);
}

void all_reduce(MpiLane& lane, const at::Tensor& tensor, const c10d::ReduceOp& given) {
  auto piece = in_one_piece(tensor, "all_reduce");
  MpiLane::Op op = given;
  if (!piece.is_complex()) {
    lane.all_reduce(piece.mutable_data_ptr(), piece.numel(), piece.scalar_type(), op);
  } else {
    auto real = real_of(piece, op);
    lane.all_reduce(real.mutable_data_ptr(), real.numel(), real.scalar_type(), op);
  }
  if (op == MpiLane::Op::AVG) {
    at::AutoGradMode no_grad(false);
    divide(piece, lane.size());
  }
  bring_back(piece, tensor);
}

// How many entries each rank's sparse tensor has. Throws MismatchError, on every rank, where the tensors differ in
// anything else.
std::vector<std::int64_t> count_entries(MpiLane& lane, const at::Tensor& tensor, MpiLane::Op op) {
  auto form = c10::str(op == MpiLane::Op::AVG ? "the mean of " : "the sum of ", tensor.scalar_type(), " ",
                       tensor.sizes(), ", sparse in the first ", tensor.sparse_dim());
  const std::int64_t mine[2] = {tensor._nnz(), static_cast<std::int64_t>(std::hash<std::string>{}(form))};
  auto size = static_cast<std::size_t>(lane.size());
  std::vector<std::int64_t> all(2 * size), counts;
  lane.all_gather(mine, all.data(), sizeof mine);
  for (std::size_t rank = 0; rank < size; ++rank) {
    if (all[2 * rank + 1] != all[1])
      throw MismatchError("rank " + std::to_string(lane.rank()) +
                          ": all_reduce of sparse tensors needs one operation, type and shape on every rank; rank " +
                          std::to_string(rank) + " has another than rank 0. Here it is " + form);
    counts.push_back(all[2 * rank]);
  }
  return counts;
}

// The rows of all ranks, one rank's below the other's.
at::Tensor gather_rows(MpiLane& lane, const at::Tensor& rows, const std::vector<std::int64_t>& counts) {
  auto longest = *std::max_element(counts.begin(), counts.end());
  auto sizes = rows.sizes().vec();
  sizes[0] = longest;
  auto mine = at::zeros(sizes, rows.options());
  mine.narrow(0, 0, rows.size(0)).copy_(rows);
  sizes[0] = longest * lane.size();
  auto all = at::empty(sizes, rows.options());
  if (all.numel() > 0)
    lane.all_gather(mine.const_data_ptr(), all.mutable_data_ptr(), static_cast<std::int64_t>(mine.nbytes()));
  Tensors parts;
  for (std::size_t rank = 0; rank < counts.size(); ++rank)
    parts.push_back(all.narrow(0, static_cast<std::int64_t>(rank) * longest, counts[rank]));
  return at::cat(parts);
}

// As Gloo does it: every rank gets the entries of all and adds those of one place.
void all_reduce_sparse(MpiLane& lane, const at::Tensor& tensor, const c10d::ReduceOp& given) {
  at::AutoGradMode no_grad(false);
  MpiLane::Op op = given;
  if (op != MpiLane::Op::SUM && op != MpiLane::Op::AVG)
    throw MisuseError("sparse tensors have a sum and a mean, but no other reduction");
  auto mine = tensor.coalesce();
  auto counts = count_entries(lane, mine, op);
  auto indices = gather_rows(lane, mine.indices().t(), counts);
  auto values = gather_rows(lane, mine.values(), counts);
  auto sum = at::sparse_coo_tensor(indices.t().contiguous(), values, tensor.sizes()).coalesce();
  if (op == MpiLane::Op::AVG) {
    auto entries = sum.values();
    divide(entries, lane.size());
  }
  tensor.copy_(sum);
}

class Backend : public MpiBackend {
 public:
  Backend(std::unique_ptr<MpiLane> lane, const MpiOptions& options)
      : MpiBackend(lane->rank(), lane->size()),
        lane_(std::move(lane)),
        options_(options),
        done_(c10::make_intrusive<DoneWork>(lane_->rank(), OpType::ALLREDUCE, Tensors{})) {
    options_.communicator = nullptr;
    if (options_.overlap_bytes <= 0) return;
    if (lane_->allows_threads())
      overlap_ = std::make_unique<Overlap>(lane_->duplicate());
    else
      log::rank_zero_warn(
          "MPI was initialised without MPI_THREAD_MULTIPLE, so all-reduces do not overlap with backward");
  }

  const std::string getBackendName() const override { return "mpi"; }
  void setTimeout(std::chrono::milliseconds timeout) override {
    options_.timeout = timeout;
    lane_->set_timeout(timeout);
    if (overlap_) overlap_->set_timeout(timeout);
  }
  bool agree(std::int64_t mark, const char* operation) override { return lane_->agree(mark, operation); }
  intrusive_ptr<MpiBackend> subgroup(const std::vector<int>& ranks, int tag) override {
    return c10::make_intrusive<Backend>(lane_->subset(ranks, tag), options_);
  }

  intrusive_ptr<Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    const auto& tensor = only(tensors, "all_reduce");
    auto op = options.reduceOp;
    if (tensor.is_sparse() && tensor.is_cpu()) {
      all_reduce_sparse(*lane_, tensor, op);
      return options.asyncOp ? done(OpType::ALLREDUCE, tensors) : done_;
    }
    require_cpu(tensor, "all_reduce");
    if (overlap_ && options.asyncOp && static_cast<std::int64_t>(tensor.nbytes()) >= options_.overlap_bytes)
      return reduce_in_thread(tensor, op, tensors);
    all_reduce(*lane_, tensor, op);
    return options.asyncOp ? done(OpType::ALLREDUCE, tensors) : done_;
  }
  intrusive_ptr<Work> allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    for (const auto& tensor : tensors) all_reduce(*lane_, tensor, options.reduceOp);
    return done(OpType::ALLREDUCE_COALESCED, tensors);
  }
  intrusive_ptr<Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    const auto& tensor = only(tensors, "broadcast");
    auto piece = in_one_piece(tensor, "broadcast");
    lane_->broadcast(piece.mutable_data_ptr(), bytes(piece), static_cast<int>(options.rootRank));
    bring_back(piece, tensor);
    return options.asyncOp ? done(OpType::BROADCAST, tensors) : done_;
  }
  intrusive_ptr<Work> reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    const auto& tensor = only(tensors, "reduce");
    auto piece = in_one_piece(tensor, "reduce");
    MpiLane::Op op = options.reduceOp;
    auto real = real_of(piece, op);
    auto root = static_cast<int>(options.rootRank);
    lane_->reduce(real.mutable_data_ptr(), real.numel(), real.scalar_type(), op, root);
    if (op == MpiLane::Op::AVG && root == getRank()) divide(piece, getSize());
    if (root == getRank()) bring_back(piece, tensor);
    return done(OpType::REDUCE, tensors);
  }
  intrusive_ptr<Work> allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                const c10d::AllgatherOptions&) override {
    auto input = in_one_piece(only(inputs, "all_gather"), "all_gather");
    auto flat = at::empty({getSize() * input.numel()}, input.options());
    lane_->all_gather(input.const_data_ptr(), flat.mutable_data_ptr(), bytes(input));
    spread(flat, outputs.at(0));
    return done(OpType::ALLGATHER, outputs[0]);
  }
  // The old names of these two are what every supported LibTorch calls, directly or through the new ones.
  intrusive_ptr<Work> _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions&) override {
    auto from = in_one_piece(input, "all_gather");
    auto to = in_one_piece(output, "all_gather");
    require_multiple(to, from, "all_gather");
    lane_->all_gather(from.const_data_ptr(), to.mutable_data_ptr(), bytes(from));
    bring_back(to, output);
    return done(OpType::_ALLGATHER_BASE, {output});
  }
  intrusive_ptr<Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                           const c10d::ReduceScatterOptions& options) override {
    auto from = in_one_piece(input, "reduce_scatter");
    auto to = in_one_piece(output, "reduce_scatter");
    require_multiple(from, to, "reduce_scatter");
    MpiLane::Op op = options.reduceOp;
    auto real_from = real_of(from, op), real_to = real_of(to, op);
    lane_->reduce_scatter(real_from.const_data_ptr(), real_to.mutable_data_ptr(), real_to.numel(),
                          real_to.scalar_type(), op);
    if (op == MpiLane::Op::AVG) divide(to, getSize());
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
    lane_->gather(input.const_data_ptr(), here ? flat.mutable_data_ptr() : nullptr, bytes(input),
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
    lane_->scatter(here ? flat.const_data_ptr() : nullptr, piece.mutable_data_ptr(), bytes(piece),
                   static_cast<int>(options.rootRank));
    bring_back(piece, output);
    return done(OpType::SCATTER, outputs);
  }
  intrusive_ptr<Work> alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<std::int64_t>& output_sizes,
                                    std::vector<std::int64_t>& input_sizes, const c10d::AllToAllOptions&) override {
    auto from = in_one_piece(input, "all_to_all");
    auto to = in_one_piece(output, "all_to_all");
    lane_->all_to_all(from.const_data_ptr(), split_bytes(from, input_sizes), to.mutable_data_ptr(),
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
    lane_->all_to_all(from.const_data_ptr(), sent, to.mutable_data_ptr(), received);
    spread(to, outputs);
    return done(OpType::ALLTOALL, outputs);
  }
  intrusive_ptr<Work> send(Tensors& tensors, int rank, int tag) override {
    auto piece = in_one_piece(only(tensors, "send"), "send");
    return c10::make_intrusive<PendingWork>(getRank(), OpType::SEND, lane_->send(piece, rank, tag), piece,
                                            at::Tensor());
  }
  intrusive_ptr<Work> recv(Tensors& tensors, int rank, int tag) override {
    return receive(tensors, rank, tag, OpType::RECV);
  }
  intrusive_ptr<Work> recvAnysource(Tensors& tensors, int tag) override {
    return receive(tensors, -1, tag, OpType::RECVANYSOURCE);
  }
  intrusive_ptr<Work> barrier(const c10d::BarrierOptions&) override {
    lane_->barrier();
    return done(OpType::BARRIER, {});
  }

 private:
  static std::int64_t bytes(const at::Tensor& tensor) { return static_cast<std::int64_t>(tensor.nbytes()); }

  intrusive_ptr<Work> done(OpType type, Tensors outputs) const {
    return c10::make_intrusive<DoneWork>(getRank(), type, std::move(outputs));
  }
  intrusive_ptr<Work> reduce_in_thread(const at::Tensor& tensor, const c10d::ReduceOp& op, const Tensors& tensors) {
    auto work = c10::make_intrusive<ThreadWork>(getRank(), OpType::ALLREDUCE, tensors);
    overlap_->add([work, tensor, op](MpiLane& lane) {
      try {
        all_reduce(lane, tensor, op);
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
    return c10::make_intrusive<PendingWork>(getRank(), type, lane_->receive(piece, rank, tag), piece, tensor);
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

  std::unique_ptr<MpiLane> lane_;
  MpiOptions options_;
  intrusive_ptr<Work> done_;  // for callers that wait inside the call: nothing is allocated then
  std::unique_ptr<Overlap> overlap_;
};

}  // namespace
}  // namespace fabric::collectives

extern "C" FABRIC_API void fabric_make_mpi_backend(const fabric::collectives::MpiOptions& options,
                                                   c10::intrusive_ptr<fabric::collectives::MpiBackend>& made) {
  using namespace fabric::collectives;
  made = c10::make_intrusive<Backend>(MpiLane::open(options), options);
}
