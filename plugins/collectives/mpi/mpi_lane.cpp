// The only file that sees mpi.h.
#include "plugins/collectives/mpi/mpi_lane.h"

#include <mpi.h>

#include <stdlib.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/collectives/half_reduction.h"
#include "plugins/collectives/mismatch_lines.h"
#include "plugins/collectives/mpi/arrival_board.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/watchdog.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::atomic<bool> a_call_failed = false;

std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

void require(int code, const char* operation, int rank) {
  if (code == MPI_SUCCESS) return;
  a_call_failed = true;
  throw CollectiveError("rank " + std::to_string(rank) + ": " + operation + " failed in MPI: " + text_of(code));
}

std::atomic<milliseconds> longest_timeout{};
int own_rank = 0;

// Finalising waits for the other ranks, which a process that failed must not do: it exits, and mpirun ends the job. Of
// failures elsewhere than in MPI nothing is known here, so the wait is watched.
void finalize_at_exit(int status, void*) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized || status != 0 || a_call_failed) return;
  Watched watched(own_rank);
  Watched::Call call(watched, "leaving the MPI job", longest_timeout.load());
  MPI_Finalize();
}

void initialise_once(int rank, milliseconds timeout) {
  own_rank = rank;
  longest_timeout = std::max(longest_timeout.load(), timeout);
  int finalized = 0, initialised = 0;
  MPI_Finalized(&finalized);
  if (finalized)
    throw MisuseError(
        "MPI was finalised already, and it cannot be initialised twice. Make the process group before "
        "MPI_Finalize, and shut it down before as well");
  MPI_Initialized(&initialised);
  if (initialised) return;
  int provided = 0;
  require(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "initialising MPI", rank);
  on_exit(finalize_at_exit, nullptr);
}

// --- types and operations

MPI_Datatype type_of(at::ScalarType type) {
  switch (type) {
    case at::kByte:
    case at::kBool:
      return MPI_UINT8_T;
    case at::kChar:
      return MPI_INT8_T;
    case at::kShort:
      return MPI_INT16_T;
    case at::kInt:
      return MPI_INT32_T;
    case at::kLong:
      return MPI_INT64_T;
    case at::kUInt16:
    case at::kHalf:
    case at::kBFloat16:
      return MPI_UINT16_T;
    case at::kUInt32:
      return MPI_UINT32_T;
    case at::kUInt64:
      return MPI_UINT64_T;
    case at::kFloat:
      return MPI_FLOAT;
    case at::kDouble:
      return MPI_DOUBLE;
    default:
      throw MisuseError(std::string("MPI cannot reduce tensors of type ") + c10::toString(type) +
                        ". Convert them to float first");
  }
}

// MPI knows no 16-bit floats: they travel as 16-bit integers and are reduced by functions of ours.
template <class Half, class Combine>
void combine_halves(void* in, void* inout, int* count, MPI_Datatype*) {
  reduce_halves<Half, Combine>(static_cast<const Half*>(in), static_cast<Half*>(inout), *count);
}

template <class Half>
MPI_Op half_op(MpiLane::Op op) {
  static const std::array<MPI_Op, 4> kOps = [] {
    std::array<MPI_Op, 4> ops;
    MPI_Op_create(combine_halves<Half, Sum>, 1, &ops[0]);
    MPI_Op_create(combine_halves<Half, Product>, 1, &ops[1]);
    MPI_Op_create(combine_halves<Half, Min>, 1, &ops[2]);
    MPI_Op_create(combine_halves<Half, Max>, 1, &ops[3]);
    return ops;
  }();
  switch (op) {
    case MpiLane::Op::SUM:
      return kOps[0];
    case MpiLane::Op::PRODUCT:
      return kOps[1];
    case MpiLane::Op::MIN:
      return kOps[2];
    case MpiLane::Op::MAX:
      return kOps[3];
    default:
      return MPI_OP_NULL;
  }
}

MPI_Op plain_op(MpiLane::Op op, bool logical) {
  switch (op) {
    case MpiLane::Op::SUM:
      return logical ? MPI_MAX : MPI_SUM;
    case MpiLane::Op::PRODUCT:
      return logical ? MPI_MIN : MPI_PROD;
    case MpiLane::Op::MIN:
      return MPI_MIN;
    case MpiLane::Op::MAX:
      return MPI_MAX;
    case MpiLane::Op::BAND:
      return MPI_BAND;
    case MpiLane::Op::BOR:
      return MPI_BOR;
    case MpiLane::Op::BXOR:
      return MPI_BXOR;
    default:
      return MPI_OP_NULL;
  }
}

// MPI knows no mean: it adds, and the caller divides. A logical value's truncated mean is 1 where all are.
MPI_Op op_of(MpiLane::Op op, at::ScalarType type) {
  if (op == MpiLane::Op::AVG) op = type == at::kBool ? MpiLane::Op::MIN : MpiLane::Op::SUM;
  MPI_Op found = type == at::kHalf       ? half_op<at::Half>(op)
                 : type == at::kBFloat16 ? half_op<at::BFloat16>(op)
                                         : plain_op(op, type == at::kBool);
  bool bitwise = op == MpiLane::Op::BAND || op == MpiLane::Op::BOR || op == MpiLane::Op::BXOR;
  if (found == MPI_OP_NULL || (bitwise && c10::isFloatingType(type)))
    throw MisuseError(std::string("MPI has no such reduction of ") + c10::toString(type) +
                      " tensors; there are sum, mean, min, max, product and, for integers, the bitwise ones");
  return found;
}

// --- what the ranks have to agree on

enum class Kind : std::uint8_t {
  duplicate,
  barrier,
  all_reduce,
  reduce,
  reduce_scatter,
  broadcast,
  all_gather,
  gather,
  scatter,
  all_to_all
};

const char* name_of(MpiLane::Op op) {
  static constexpr const char* kNames[] = {"sum",         "mean",       "product",     "min", "max",
                                           "bitwise and", "bitwise or", "bitwise xor", "?",   "?"};
  return kNames[op];
}

// What this rank is about to do, as far as all ranks have to do the same.
struct Step {
  Kind kind;
  std::int64_t bytes = 0;
  at::ScalarType type = at::kByte;
  MpiLane::Op op = MpiLane::Op::UNUSED;
  int root = -1;

  const char* name() const {
    static constexpr const char* kNames[] = {"duplicating the MPI group",
                                             "barrier",
                                             "all_reduce",
                                             "reduce",
                                             "reduce_scatter",
                                             "broadcast",
                                             "all_gather",
                                             "gather",
                                             "scatter",
                                             "all_to_all"};
    return kNames[static_cast<int>(kind)];
  }
  // Packed and not hashed: it is made for each of the smallest operations.
  std::int64_t mark() const {
    return static_cast<std::int64_t>(
        static_cast<std::uint64_t>(bytes) << 28 | (static_cast<std::uint64_t>(root + 1) & 0xfff) << 16 |
        static_cast<std::uint64_t>(type) << 8 | static_cast<std::uint64_t>(op) << 4 | static_cast<std::uint64_t>(kind));
  }
  std::string text() const {
    std::string text = name();
    if (op != MpiLane::Op::UNUSED)
      text += std::string("(") + name_of(op) + ") of " +
              std::to_string(bytes / static_cast<std::int64_t>(c10::elementSize(type))) + " " + c10::toString(type) +
              " items";
    else if (bytes > 0)
      text += " of " + std::to_string(bytes) + " bytes";
    if (root >= 0) text += ", root " + std::to_string(root);
    return text;
  }
};

// One item that stands for `bytes` bytes, however many: MPI counts in int.
class Block {
 public:
  Block(std::int64_t bytes, std::int64_t most) {
    if (bytes <= most) {
      count_ = static_cast<int>(bytes);
      return;
    }
    auto whole = static_cast<int>(bytes / most), rest = static_cast<int>(bytes % most);
    MPI_Datatype piece;
    MPI_Type_contiguous(static_cast<int>(most), MPI_BYTE, &piece);
    int lengths[2] = {whole, rest};
    MPI_Aint places[2] = {0, static_cast<MPI_Aint>(whole) * most};
    MPI_Datatype types[2] = {piece, MPI_BYTE};
    MPI_Type_create_struct(2, lengths, places, types, &type_);
    MPI_Type_commit(&type_);
    MPI_Type_free(&piece);
    count_ = 1;
    made_ = true;
  }
  ~Block() {
    if (made_) MPI_Type_free(&type_);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  int count() const { return count_; }
  MPI_Datatype type() const { return type_; }

 private:
  int count_ = 0;
  MPI_Datatype type_ = MPI_BYTE;
  bool made_ = false;
};

// --- point to point

// Outlives its lane where the caller keeps it longer.
class PendingRequest : public MpiLane::Pending {
 public:
  /// `peer` -1: any. `lane_failed` is set when the wait fails.
  PendingRequest(at::Tensor tensor, const char* operation, int rank, int peer, milliseconds timeout,
                 std::shared_ptr<std::atomic<bool>> lane_failed)
      : tensor_(std::move(tensor)),
        operation_(operation),
        rank_(rank),
        peer_(peer),
        timeout_(timeout),
        lane_failed_(std::move(lane_failed)) {}
  // MPI may still use the memory of a request that nobody waited for, so that memory is never given back.
  ~PendingRequest() override {
    if (request_ != MPI_REQUEST_NULL && !finished_quietly()) tensor_.unsafeReleaseTensorImpl();
  }
  bool done() override {
    int done = 0;
    require(MPI_Test(&request_, &done, &status_), operation_, rank_);
    return done != 0;
  }
  void wait() override {
    auto begin = steady_clock::now();
    for (int turn = 0; !done(); ++turn) {
      if (turn < 1000) continue;
      auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
      if (waited > timeout_) give_up(waited);
      if (waited > milliseconds(3)) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }
  int source() const override { return status_.MPI_SOURCE; }
  MPI_Request* request() { return &request_; }

 private:
  // The process must not go to MPI_Finalize then, which waits for the rank that is missing.
  [[noreturn]] void give_up(milliseconds waited) {
    *lane_failed_ = true;
    a_call_failed = true;
    throw TimeoutError(rank_, operation_, waited,
                       (peer_ < 0 ? std::string("no rank sent anything") : list_of_ranks({peer_}) + " did not come") +
                           ": ended, stuck, or calling something else");
  }
  bool finished_quietly() noexcept {
    int done = 0, finalized = 0;
    MPI_Finalized(&finalized);
    return !finalized && MPI_Test(&request_, &done, &status_) == MPI_SUCCESS && done;
  }
  at::Tensor tensor_;
  const char* operation_;
  int rank_;
  int peer_;
  milliseconds timeout_;
  std::shared_ptr<std::atomic<bool>> lane_failed_;
  MPI_Request request_ = MPI_REQUEST_NULL;
  MPI_Status status_{};
};

// --- the lane

class Lane : public MpiLane {
 public:
  Lane(MPI_Comm communicator, const MpiOptions& options)
      : comm_(communicator), options_(options), timeout_(options.timeout) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    watched_.emplace(rank_);
    Watched::Call call(*watched_, "joining the MPI group", timeout_);
    open_board();
  }
  // Freeing a communicator talks to nobody in Open MPI; one that failed is left alone.
  ~Lane() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized && !*failed_) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool allows_threads() const override {
    int provided = 0;
    MPI_Query_thread(&provided);
    return provided == MPI_THREAD_MULTIPLE;
  }
  std::unique_ptr<MpiLane> duplicate() override {
    auto call = enter({Kind::duplicate});
    MPI_Comm copy;
    check(MPI_Comm_dup(comm_, &copy), "duplicating the MPI group");
    return std::make_unique<Lane>(copy, options());
  }
  std::unique_ptr<MpiLane> subset(const std::vector<int>& ranks, int tag) override {
    Watched::Call call(*watched_, "making an MPI subgroup", timeout_);
    MPI_Group all, some;
    MPI_Comm made;
    MPI_Comm_group(comm_, &all);
    MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &some);
    int code = MPI_Comm_create_group(comm_, some, tag, &made);
    MPI_Group_free(&some);
    MPI_Group_free(&all);
    check(code, "making an MPI subgroup");
    return std::make_unique<Lane>(made, options());
  }
  void set_timeout(milliseconds timeout) override { timeout_ = timeout; }

  bool agree(std::int64_t mark, const char* operation) override {
    if (board_) return meet(mark, operation);
    std::int64_t both[2] = {mark, -mark};
    Watched::Call call(*watched_, operation, timeout_);
    check(MPI_Allreduce(MPI_IN_PLACE, both, 2, MPI_INT64_T, MPI_MAX, comm_), operation);
    return both[0] == -both[1];
  }
  void barrier() override {
    if (board_) return meet({Kind::barrier});
    Watched::Call call(*watched_, "barrier", timeout_);
    check(MPI_Barrier(comm_), "barrier");
  }
  void all_reduce(void* data, std::int64_t count, at::ScalarType type, Op op) override {
    auto item = type_of(type);
    auto function = op_of(op, type);
    Step step{Kind::all_reduce, bytes_of(count, type), type, op};
    if (board_ && static_cast<std::size_t>(step.bytes) <= board_->capacity())
      return reduce_on_board(data, static_cast<int>(count), step, item, function);
    auto call = enter(step);
    in_pieces(data, count, type, [&](void* at, int piece) {
      check(MPI_Allreduce(MPI_IN_PLACE, at, piece, item, function, comm_), "all_reduce");
    });
  }
  void reduce(void* data, std::int64_t count, at::ScalarType type, Op op, int root) override {
    auto item = type_of(type);
    auto function = op_of(op, type);
    auto call = enter({Kind::reduce, bytes_of(count, type), type, op, root});
    in_pieces(data, count, type, [&](void* at, int piece) {
      const void* from = rank_ == root ? MPI_IN_PLACE : at;
      check(MPI_Reduce(from, rank_ == root ? at : nullptr, piece, item, function, root, comm_), "reduce");
    });
  }
  void reduce_scatter(const void* input, void* output, std::int64_t count_each, at::ScalarType type, Op op) override {
    auto item = type_of(type);
    auto function = op_of(op, type);
    auto bytes = bytes_of(count_each, type);
    auto call = enter({Kind::reduce_scatter, bytes, type, op});
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
    auto call = enter({.kind = Kind::broadcast, .bytes = bytes, .root = root});
    in_pieces(data, bytes, at::kByte,
              [&](void* at, int piece) { check(MPI_Bcast(at, piece, MPI_BYTE, root, comm_), "broadcast"); });
  }
  void all_gather(const void* input, void* output, std::int64_t bytes_each) override {
    Block block(bytes_each, options_.most_items);
    auto call = enter({Kind::all_gather, bytes_each});
    check(MPI_Allgather(input, block.count(), block.type(), output, block.count(), block.type(), comm_), "all_gather");
  }
  void gather(const void* input, void* output, std::int64_t bytes_each, int root) override {
    Block block(bytes_each, options_.most_items);
    auto call = enter({.kind = Kind::gather, .bytes = bytes_each, .root = root});
    check(MPI_Gather(input, block.count(), block.type(), output, block.count(), block.type(), root, comm_), "gather");
  }
  void scatter(const void* input, void* output, std::int64_t bytes_each, int root) override {
    Block block(bytes_each, options_.most_items);
    auto call = enter({.kind = Kind::scatter, .bytes = bytes_each, .root = root});
    check(MPI_Scatter(input, block.count(), block.type(), output, block.count(), block.type(), root, comm_), "scatter");
  }
  // Pairwise, since MPI_Alltoallv places its parts by int as well.
  void all_to_all(const void* input, const std::vector<std::int64_t>& sent, void* output,
                  const std::vector<std::int64_t>& received) override {
    auto call = enter({Kind::all_to_all});
    std::vector<std::int64_t> from(size_ + 1, 0), to(size_ + 1, 0);
    for (int i = 0; i < size_; ++i) {
      from[i + 1] = from[i] + sent[i];
      to[i + 1] = to[i] + received[i];
    }
    for (int step = 0; step < size_; ++step) {
      int target = (rank_ + step) % size_, source = (rank_ - step + size_) % size_;
      Block out(sent[target], options_.most_items), in(received[source], options_.most_items);
      check(MPI_Sendrecv(static_cast<const char*>(input) + from[target], out.count(), out.type(), target, kInternalTag,
                         static_cast<char*>(output) + to[source], in.count(), in.type(), source, kInternalTag, comm_,
                         MPI_STATUS_IGNORE),
            "all_to_all");
    }
  }
  std::unique_ptr<Pending> send(const at::Tensor& tensor, int rank, int tag) override {
    Block block(static_cast<std::int64_t>(tensor.nbytes()), options_.most_items);
    auto pending = std::make_unique<PendingRequest>(tensor, "send", rank_, rank, timeout_, failed_);
    check(
        MPI_Isend(tensor.const_data_ptr(), block.count(), block.type(), rank, user_tag(tag), comm_, pending->request()),
        "send");
    return pending;
  }
  std::unique_ptr<Pending> receive(const at::Tensor& tensor, int rank, int tag) override {
    Block block(static_cast<std::int64_t>(tensor.nbytes()), options_.most_items);
    auto pending = std::make_unique<PendingRequest>(tensor, "recv", rank_, rank, timeout_, failed_);
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
    require(code, operation, rank_);
  }
  bool meet(std::int64_t mark, const char* operation) {
    try {
      return board_->meet(mark, operation, timeout_);
    } catch (const CollectiveError&) {
      *failed_ = true;
      a_call_failed = true;
      throw;
    }
  }
  /// Throws MismatchError where the ranks came with different operations: each of them knows it then, and none goes on.
  void meet(const Step& step) {
    if (!meet(step.mark(), step.name())) [[unlikely]]
      throw_mismatch(step);
  }
  // Ranks that came checked tell one another what they called (check.cpp), and would wait there for this one, so it
  // makes the same exchange. In step again, the ranks can go on.
  [[noreturn]] void throw_mismatch(const Step& step) {
    if (telling_)
      throw CollectiveError("rank " + std::to_string(rank_) + ": " + step.name() +
                            " cannot run, since the ranks called different operations");
    std::vector<std::uint8_t> lines(static_cast<std::size_t>(size_ * kLineRoom), 0);
    write_line(lines.data(), rank_, step.text());
    telling_ = true;
    try {
      all_reduce(lines.data(), static_cast<std::int64_t>(lines.size()), at::kByte, Op::MAX);
    } catch (...) {
      telling_ = false;
      throw;
    }
    telling_ = false;
    throw MismatchError(mismatch_text(lines.data(), rank_, size_));
  }
  // The ranks meet anyway: they bring their numbers along, and each reduces all of them in the order of the ranks.
  void reduce_on_board(void* data, int count, const Step& step, MPI_Datatype item, MPI_Op function) {
    auto bytes = static_cast<std::size_t>(step.bytes);
    if (bytes > 0) std::memcpy(board_->outbox(), data, bytes);
    meet(step);
    if (bytes == 0) return;
    std::memcpy(data, board_->inbox(0), bytes);
    for (int rank = 1; rank < size_; ++rank)
      check(MPI_Reduce_local(board_->inbox(rank), data, count, item, function), "all_reduce");
  }
  // Once all have come, a call that still lasts longer than the timeout is watched with a moment more, so that ranks
  // whose waits began earlier report first and by name.
  Watched::Call enter(const Step& step) {
    if (board_) meet(step);
    auto timeout = timeout_.load(std::memory_order_relaxed);
    return Watched::Call(*watched_, step.name(), board_ ? timeout + kGrace : timeout);
  }
  template <class Do>
  void in_pieces(void* data, std::int64_t count, at::ScalarType type, Do&& act) {
    auto size = static_cast<std::int64_t>(c10::elementSize(type));
    for (std::int64_t done = 0; done < count; done += options_.most_items)
      act(static_cast<char*>(data) + done * size, static_cast<int>(std::min(options_.most_items, count - done)));
  }
  // Only where all ranks share a machine, and only if every rank could open it.
  void open_board() {
    MPI_Comm local;
    check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local), "joining the MPI group");
    int local_size = 0, all_local = 0;
    MPI_Comm_size(local, &local_size);
    MPI_Comm_free(&local);
    int mine = local_size == size_;
    check(MPI_Allreduce(&mine, &all_local, 1, MPI_INT, MPI_MIN, comm_), "joining the MPI group");
    if (!all_local || size_ == 1) return;
    std::unique_ptr<ArrivalBoard> board;
    char name[128] = "";
    if (rank_ == 0 && (board = ArrivalBoard::open(0, size_))) {
      watched_->owns_shared_memory(board->name());
      std::strncpy(name, board->name().c_str(), sizeof name - 1);
    }
    check(MPI_Bcast(name, sizeof name, MPI_CHAR, 0, comm_), "joining the MPI group");
    if (rank_ != 0 && name[0]) board = ArrivalBoard::open(rank_, size_, name);
    int opened = board != nullptr, all_opened = 0;
    check(MPI_Allreduce(&opened, &all_opened, 1, MPI_INT, MPI_MIN, comm_), "joining the MPI group");
    if (rank_ == 0 && board) {
      board->unlink();
      watched_->owns_shared_memory("");
    }
    if (all_opened)
      board_ = std::move(board);
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
  bool telling_ = false;
  std::shared_ptr<std::atomic<bool>> failed_ = std::make_shared<std::atomic<bool>>(false);
  std::unique_ptr<ArrivalBoard> board_;
  std::optional<Watched> watched_;
};

}  // namespace

std::unique_ptr<MpiLane> MpiLane::open(const MpiOptions& options) {
  Watched watched(options.rank);
  Watched::Call call(watched, "joining the MPI group", options.timeout);
  initialise_once(options.rank, options.timeout);
  MPI_Comm source = options.communicator ? *static_cast<const MPI_Comm*>(options.communicator) : MPI_COMM_WORLD;
  if (source == MPI_COMM_NULL)
    throw MisuseError("from_mpi_comm got MPI_COMM_NULL: this rank is not part of the communicator");
  MPI_Comm copy;
  require(MPI_Comm_dup(source, &copy), "duplicating the communicator", options.rank);
  return std::make_unique<Lane>(copy, options);
}

}  // namespace fabric::collectives
