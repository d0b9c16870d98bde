#include "plugins/collectives/mpi/mpi_communicator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/collectives/communicator/collective_call.h"
#include "plugins/collectives/communicator/local_reduction.h"
#include "plugins/collectives/communicator/mismatch_teller.h"
#include "plugins/collectives/mpi/mpi_api.h"
#include "plugins/collectives/mpi/mpi_transfer.h"
#include "plugins/collectives/mpi/mpi_types.h"
#include "plugins/collectives/shm/shared_memory_barrier.h"
#include "plugins/collectives/shm/small_reduction.h"
#include "plugins/collectives/watchdog.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MPI_Comm communicator, const MpiOptions& options)
      : comm_(communicator), options_(options), timeout_(options.timeout) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    watched_.emplace(rank_);
    Watched::Call call(*watched_, "joining the MPI group", timeout_);
    open_barrier();
  }
  // Freeing a communicator talks to nobody in Open MPI; one that failed is left alone.
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized && !*failed_) MPI_Comm_free(&comm_);
  }

  const char* what() const override { return "MPI"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool allows_threads() const override {
    int provided = 0;
    MPI_Query_thread(&provided);
    return provided == MPI_THREAD_MULTIPLE;
  }
  std::unique_ptr<Communicator> duplicate() override {
    auto watched = enter({CallKind::duplicate});
    MPI_Comm copy;
    check(MPI_Comm_dup(comm_, &copy), "duplicating the MPI group");
    return std::make_unique<MpiCommunicator>(copy, options());
  }
  std::unique_ptr<Communicator> subset(const std::vector<int>& ranks, int tag) override {
    Watched::Call call(*watched_, "making an MPI subgroup", timeout_);
    MPI_Group all, some;
    MPI_Comm made;
    MPI_Comm_group(comm_, &all);
    MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &some);
    int code = MPI_Comm_create_group(comm_, some, tag, &made);
    MPI_Group_free(&some);
    MPI_Group_free(&all);
    check(code, "making an MPI subgroup");
    return std::make_unique<MpiCommunicator>(made, options());
  }
  void set_timeout(milliseconds timeout) override { timeout_ = timeout; }

  bool agree(std::int64_t mark, const char* operation) override {
    if (barrier_) return meet(mark, operation);
    std::int64_t both[2] = {mark, -mark};
    Watched::Call call(*watched_, operation, timeout_);
    check(MPI_Allreduce(MPI_IN_PLACE, both, 2, MPI_INT64_T, MPI_MAX, comm_), operation);
    return both[0] == -both[1];
  }
  void barrier() override {
    if (barrier_) return meet({CallKind::barrier});
    Watched::Call call(*watched_, "barrier", timeout_);
    check(MPI_Barrier(comm_), "barrier");
  }
  void all_reduce(void* data, std::int64_t count, at::ScalarType type, Op op) override {
    require_reducible(type, op);
    CollectiveCall call{CallKind::all_reduce, bytes_of(count, type), type, op};
    if (barrier_ && static_cast<std::size_t>(call.bytes) <= barrier_->capacity())
      return all_reduce_at_barrier(*barrier_, data, count, type, op, [&] { meet(call); });
    auto item = mpi_type_of(type);
    auto function = mpi_op_of(op, type);
    auto watched = enter(call);
    in_pieces(data, count, type, [&](void* at, int piece) {
      check(MPI_Allreduce(MPI_IN_PLACE, at, piece, item, function, comm_), "all_reduce");
    });
  }
  void reduce(void* data, std::int64_t count, at::ScalarType type, Op op, int root) override {
    auto item = mpi_type_of(type);
    auto function = mpi_op_of(op, type);
    auto watched = enter({CallKind::reduce, bytes_of(count, type), type, op, root});
    in_pieces(data, count, type, [&](void* at, int piece) {
      const void* from = rank_ == root ? MPI_IN_PLACE : at;
      check(MPI_Reduce(from, rank_ == root ? at : nullptr, piece, item, function, root, comm_), "reduce");
    });
  }
  void reduce_scatter(const void* input, void* output, std::int64_t count_each, at::ScalarType type, Op op) override {
    auto item = mpi_type_of(type);
    auto function = mpi_op_of(op, type);
    auto bytes = bytes_of(count_each, type);
    auto watched = enter({CallKind::reduce_scatter, bytes, type, op});
    // The parts of all ranks have to fit one call; larger ones go rank by rank.
    if (count_each * size_ <= options_.most_items)
      return check(MPI_Reduce_scatter_block(input, output, static_cast<int>(count_each), item, function, comm_),
                   "reduce_scatter");
    for (int root = 0; root < size_; ++root) {
      const auto* part = static_cast<const char*>(input) + root * bytes;
      in_pieces(output, count_each, type, [&](void* at, int piece) {
        const auto* from = part + (static_cast<char*>(at) - static_cast<char*>(output));
        check(MPI_Reduce(from, rank_ == root ? at : nullptr, piece, item, function, root, comm_), "reduce_scatter");
      });
    }
  }
  void broadcast(void* data, std::int64_t bytes, int root) override {
    auto watched = enter({.kind = CallKind::broadcast, .bytes = bytes, .root = root});
    in_pieces(data, bytes, at::kByte,
              [&](void* at, int piece) { check(MPI_Bcast(at, piece, MPI_BYTE, root, comm_), "broadcast"); });
  }
  void all_gather(const void* input, void* output, std::int64_t bytes_each) override {
    MpiBlock block(bytes_each, options_.most_items);
    auto watched = enter({CallKind::all_gather, bytes_each});
    check(MPI_Allgather(input, block.count(), block.type(), output, block.count(), block.type(), comm_), "all_gather");
  }
  void gather(const void* input, void* output, std::int64_t bytes_each, int root) override {
    MpiBlock block(bytes_each, options_.most_items);
    auto watched = enter({.kind = CallKind::gather, .bytes = bytes_each, .root = root});
    check(MPI_Gather(input, block.count(), block.type(), output, block.count(), block.type(), root, comm_), "gather");
  }
  void scatter(const void* input, void* output, std::int64_t bytes_each, int root) override {
    MpiBlock block(bytes_each, options_.most_items);
    auto watched = enter({.kind = CallKind::scatter, .bytes = bytes_each, .root = root});
    check(MPI_Scatter(input, block.count(), block.type(), output, block.count(), block.type(), root, comm_), "scatter");
  }
  // Pairwise, since MPI_Alltoallv places its parts by int as well.
  void all_to_all(const void* input, const std::vector<std::int64_t>& sent, void* output,
                  const std::vector<std::int64_t>& received) override {
    auto watched = enter({CallKind::all_to_all});
    std::vector<std::int64_t> from(size_ + 1, 0), to(size_ + 1, 0);
    for (int i = 0; i < size_; ++i) {
      from[i + 1] = from[i] + sent[i];
      to[i + 1] = to[i] + received[i];
    }
    for (int step = 0; step < size_; ++step) {
      int target = (rank_ + step) % size_, source = (rank_ - step + size_) % size_;
      MpiBlock out(sent[target], options_.most_items), in(received[source], options_.most_items);
      check(MPI_Sendrecv(static_cast<const char*>(input) + from[target], out.count(), out.type(), target, kInternalTag,
                         static_cast<char*>(output) + to[source], in.count(), in.type(), source, kInternalTag, comm_,
                         MPI_STATUS_IGNORE),
            "all_to_all");
    }
  }
  std::unique_ptr<PendingTransfer> send(const at::Tensor& tensor, int rank, int tag) override {
    MpiBlock block(static_cast<std::int64_t>(tensor.nbytes()), options_.most_items);
    auto pending = std::make_unique<MpiTransfer>(tensor, "send", rank_, rank, timeout_, failed_);
    check(
        MPI_Isend(tensor.const_data_ptr(), block.count(), block.type(), rank, user_tag(tag), comm_, pending->request()),
        "send");
    return pending;
  }
  std::unique_ptr<PendingTransfer> receive(const at::Tensor& tensor, int rank, int tag) override {
    MpiBlock block(static_cast<std::int64_t>(tensor.nbytes()), options_.most_items);
    auto pending = std::make_unique<MpiTransfer>(tensor, "recv", rank_, rank, timeout_, failed_);
    check(MPI_Irecv(tensor.mutable_data_ptr(), block.count(), block.type(), rank < 0 ? MPI_ANY_SOURCE : rank,
                    user_tag(tag), comm_, pending->request()),
          "recv");
    return pending;
  }

 private:
  static constexpr int kInternalTag = 0;
  static constexpr milliseconds kGrace{2000};

  static int user_tag(int tag) {
    if (tag < 0) throw MisuseError("the tag of send and recv is " + std::to_string(tag) + "; it has to be 0 or more");
    return tag + 1;
  }
  static std::int64_t bytes_of(std::int64_t count, at::ScalarType type) {
    return count * static_cast<std::int64_t>(c10::elementSize(type));
  }
  MpiOptions options() const {
    auto current = options_;
    current.timeout = timeout_;
    return current;
  }
  void check(int code, const char* operation) {
    if (code != MPI_SUCCESS) *failed_ = true;
    require_success(code, operation, rank_);
  }
  bool meet(std::int64_t mark, const char* operation) {
    try {
      return barrier_->meet(mark, operation, timeout_);
    } catch (const CollectiveError&) {
      *failed_ = true;
      remember_mpi_failure();
      throw;
    }
  }
  /// Throws MismatchError where the ranks came with different operations: each of them knows it then, and none goes on.
  void meet(const CollectiveCall& call) {
    if (!meet(call.mark(), call.name())) [[unlikely]]
      mismatch_.tell(*this, call);
  }
  // Once all have come, a call that still lasts longer than the timeout is watched with a moment more, so that ranks
  // whose waits began earlier report first and by name.
  Watched::Call enter(const CollectiveCall& call) {
    if (barrier_) meet(call);
    auto timeout = timeout_.load(std::memory_order_relaxed);
    return Watched::Call(*watched_, call.name(), barrier_ ? timeout + kGrace : timeout);
  }
  template <class Do>
  void in_pieces(void* data, std::int64_t count, at::ScalarType type, Do&& act) {
    auto size = static_cast<std::int64_t>(c10::elementSize(type));
    for (std::int64_t done = 0; done < count; done += options_.most_items)
      act(static_cast<char*>(data) + done * size, static_cast<int>(std::min(options_.most_items, count - done)));
  }
  // Only where all ranks share a machine, and only if every rank could open it.
  void open_barrier() {
    MPI_Comm local;
    check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local), "joining the MPI group");
    int local_size = 0, all_local = 0;
    MPI_Comm_size(local, &local_size);
    MPI_Comm_free(&local);
    int mine = local_size == size_;
    check(MPI_Allreduce(&mine, &all_local, 1, MPI_INT, MPI_MIN, comm_), "joining the MPI group");
    if (!all_local || size_ == 1) return;
    std::unique_ptr<SharedMemoryBarrier> barrier;
    char name[128] = "";
    if (rank_ == 0 && (barrier = SharedMemoryBarrier::open(0, size_))) {
      watched_->owns_shared_memory(barrier->name());
      std::strncpy(name, barrier->name().c_str(), sizeof name - 1);
    }
    check(MPI_Bcast(name, sizeof name, MPI_CHAR, 0, comm_), "joining the MPI group");
    if (rank_ != 0 && name[0]) barrier = SharedMemoryBarrier::open(rank_, size_, name);
    int opened = barrier != nullptr, all_opened = 0;
    check(MPI_Allreduce(&opened, &all_opened, 1, MPI_INT, MPI_MIN, comm_), "joining the MPI group");
    if (rank_ == 0 && barrier) {
      barrier->unlink();
      watched_->owns_shared_memory("");
    }
    if (all_opened)
      barrier_ = std::move(barrier);
    else
      log::rank_zero_warn(
          "MPI ranks on this machine cannot share memory (/dev/shm): a rank that is missing ends the job "
          "instead of throwing TimeoutError");
  }

  MPI_Comm comm_;
  MpiOptions options_;
  std::atomic<milliseconds> timeout_;  // another thread than the one that works here may set it
  int rank_ = 0;
  int size_ = 1;
  MismatchTeller mismatch_;
  std::shared_ptr<std::atomic<bool>> failed_ = std::make_shared<std::atomic<bool>>(false);
  std::unique_ptr<SharedMemoryBarrier> barrier_;
  std::optional<Watched> watched_;
};

}  // namespace

std::unique_ptr<Communicator> open_mpi(const MpiOptions& options) {
  Watched watched(options.rank);
  Watched::Call call(watched, "joining the MPI group", options.timeout);
  initialise_mpi(options.rank, options.timeout);
  MPI_Comm source = options.communicator ? *static_cast<const MPI_Comm*>(options.communicator) : MPI_COMM_WORLD;
  if (source == MPI_COMM_NULL)
    throw MisuseError("from_mpi_comm got MPI_COMM_NULL: this rank is not part of the communicator");
  MPI_Comm copy;
  require_success(MPI_Comm_dup(source, &copy), "duplicating the communicator", options.rank);
  return std::make_unique<MpiCommunicator>(copy, options);
}

}  // namespace fabric::collectives
