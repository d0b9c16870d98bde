// Collectives in shared memory, in pieces that stay in the processor's cache.
//
// Each rank has two slots, used in turn as the count of meetings is even or odd (SharedMemoryBarrier). Ahead of a
// meeting a rank writes to its slot of the coming turn (`out`); after it, it reads the slots of all (`in`). A slot is
// written again two meetings later, and whoever comes to the meeting between has read it: so one meeting for each piece
// is enough. An all-reduce needs two: after the first each rank reduces its share of the piece, for all, in the order
// of the ranks, into its slot of the next turn, from where all take it after the second.
#include "plugins/collectives/shm/shm_communicator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include <fabric/base/error.h>

#include "plugins/collectives/communicator/collective_call.h"
#include "plugins/collectives/communicator/local_reduction.h"
#include "plugins/collectives/communicator/mismatch_teller.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/shm/mailbox.h"
#include "plugins/collectives/shm/patience.h"
#include "plugins/collectives/shm/shared_memory_barrier.h"
#include "plugins/collectives/shm/small_reduction.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kMostOfSlot = 256 * 1024, kMostOfSlots = 2 << 20, kLeastOfSlot = 16 * 1024, kCacheLine = 64;

std::size_t slot_bytes(int size) {
  return std::clamp(kMostOfSlots / static_cast<std::size_t>(size), kLeastOfSlot, kMostOfSlot) / kCacheLine * kCacheLine;
}
std::size_t whole_lines(std::size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

// What outlives the communicator where a send or receive is kept longer.
struct SharedState {
  SharedState(int rank, int size, std::unique_ptr<SharedSegment> memory)
      : segment(std::move(memory)),
        barrier(rank, size, segment->data(),
                {.is_gone = [this](int other) { return segment->is_gone(other); },
                 .meanwhile = [this] { mailbox.move(); }}),
        mailbox(rank, size, segment->data() + whole_lines(SharedMemoryBarrier::bytes_for(size)), barrier.bell()),
        slots(segment->data() + whole_lines(SharedMemoryBarrier::bytes_for(size)) +
              whole_lines(Mailbox::bytes_for(size))) {}
  std::unique_ptr<SharedSegment> segment;
  SharedMemoryBarrier barrier;
  Mailbox mailbox;
  char* slots;
};

class ShmTransfer : public PendingTransfer {
 public:
  ShmTransfer(std::shared_ptr<SharedState> shared, std::shared_ptr<Mailbox::Message> message, const char* operation,
              int rank, int peer, milliseconds timeout)
      : shared_(std::move(shared)),
        message_(std::move(message)),
        operation_(operation),
        rank_(rank),
        peer_(peer),
        timeout_(timeout) {}
  bool done() override {
    shared_->mailbox.move();
    return shared_->mailbox.is_done(*message_);
  }
  void wait() override {
    Patience patience(shared_->barrier.bell(), timeout_);
    while (!done()) {
      if (!patience.wait([this] { return done(); }))
        throw TimeoutError(rank_, operation_, patience.waited(), who() + ": ended, stuck, or calling something else");
      if (peer_ >= 0 && patience.is_to_look_around() && shared_->segment->is_gone(peer_) && !done())
        throw CollectiveError("rank " + std::to_string(rank_) + ": " + operation_ + " cannot end, since rank " +
                              std::to_string(peer_) + " is gone: its process ended, or it left the group");
    }
    source_ = shared_->mailbox.source_of(*message_);
  }
  int source() const override { return source_; }

 private:
  std::string who() const {
    return peer_ < 0 ? std::string("no rank sent anything") : list_of_ranks({peer_}) + " did not come";
  }
  std::shared_ptr<SharedState> shared_;
  std::shared_ptr<Mailbox::Message> message_;
  const char* operation_;
  int rank_, peer_, source_ = -1;
  milliseconds timeout_;
};

class ShmCommunicator : public Communicator {
 public:
  ShmCommunicator(int rank, int size, std::unique_ptr<SharedSegment> segment, milliseconds timeout)
      : rank_(rank),
        size_(size),
        slot_(slot_bytes(size)),
        part_(slot_ / static_cast<std::size_t>(size) / kCacheLine * kCacheLine),
        timeout_(timeout),
        shared_(std::make_shared<SharedState>(rank, size, std::move(segment))),
        barrier_(shared_->barrier) {}

  const char* what() const override { return "shared memory"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool allows_threads() const override { return false; }
  std::unique_ptr<Communicator> duplicate() override { throw MisuseError("shared memory is used by one thread"); }
  // Made anew, by way of the store.
  std::unique_ptr<Communicator> subset(const std::vector<int>&, int) override { return nullptr; }
  void set_timeout(milliseconds timeout) override { timeout_ = timeout; }

  bool agree(std::int64_t mark, const char* operation) override { return barrier_.meet(mark, operation, timeout_); }
  void barrier() override { meet({CallKind::barrier}); }

  void all_reduce(void* data, std::int64_t count, at::ScalarType type, Op op) override {
    require_reducible(type, op);
    const CollectiveCall call{CallKind::all_reduce, bytes_of(count, type), type, op};
    if (static_cast<std::size_t>(call.bytes) <= barrier_.capacity())
      return all_reduce_at_barrier(barrier_, data, count, type, op, [&] { meet(call); });
    in_pieces(call, slot_, [&](std::size_t begin, std::size_t bytes) {
      char* here = static_cast<char*>(data) + begin;
      copy_bytes(out(), here, bytes);
      meet(call);
      auto [first, items] = share_of(rank_, bytes, type);
      reduce_in_rank_order(in(0) + first, slot_, size_, out() + first, items, type, op);
      meet(call);
      for (int other = 0; other < size_; ++other) {
        auto [at, length] = share_of(other, bytes, type);
        copy_bytes(here + at, in(other) + at, static_cast<std::size_t>(bytes_of(length, type)));
      }
    });
  }
  void reduce(void* data, std::int64_t count, at::ScalarType type, Op op, int root) override {
    require_reducible(type, op);
    const CollectiveCall call{CallKind::reduce, bytes_of(count, type), type, op, root};
    in_pieces(call, slot_, [&](std::size_t begin, std::size_t bytes) {
      char* here = static_cast<char*>(data) + begin;
      copy_bytes(out(), here, bytes);
      meet(call);
      if (rank_ == root) reduce_in_rank_order(in(0), slot_, size_, here, items_of(bytes, type), type, op);
    });
  }
  void reduce_scatter(const void* input, void* output, std::int64_t count_each, at::ScalarType type, Op op) override {
    require_reducible(type, op);
    const CollectiveCall call{CallKind::reduce_scatter, bytes_of(count_each, type), type, op};
    in_pieces(call, part_, [&](std::size_t begin, std::size_t bytes) {
      write_parts(input, static_cast<std::size_t>(call.bytes), begin, bytes);
      meet(call);
      reduce_in_rank_order(in(0) + part_of(rank_), slot_, size_, static_cast<char*>(output) + begin,
                           items_of(bytes, type), type, op);
    });
  }
  void broadcast(void* data, std::int64_t bytes, int root) override {
    const CollectiveCall call{.kind = CallKind::broadcast, .bytes = bytes, .root = root};
    in_pieces(call, slot_, [&](std::size_t begin, std::size_t length) {
      char* here = static_cast<char*>(data) + begin;
      if (rank_ == root) copy_bytes(out(), here, length);
      meet(call);
      if (rank_ != root) copy_bytes(here, in(root), length);
    });
  }
  void all_gather(const void* input, void* output, std::int64_t bytes_each) override {
    collect({CallKind::all_gather, bytes_each}, input, output);
  }
  void gather(const void* input, void* output, std::int64_t bytes_each, int root) override {
    collect({.kind = CallKind::gather, .bytes = bytes_each, .root = root}, input, rank_ == root ? output : nullptr);
  }
  void scatter(const void* input, void* output, std::int64_t bytes_each, int root) override {
    const CollectiveCall call{.kind = CallKind::scatter, .bytes = bytes_each, .root = root};
    in_pieces(call, part_, [&](std::size_t begin, std::size_t bytes) {
      if (rank_ == root) write_parts(input, static_cast<std::size_t>(bytes_each), begin, bytes);
      meet(call);
      copy_bytes(static_cast<char*>(output) + begin, in(root) + part_of(rank_), bytes);
    });
  }
  void all_to_all(const void* input, const std::vector<std::int64_t>& sent, void* output,
                  const std::vector<std::int64_t>& received) override {
    const CollectiveCall call{CallKind::all_to_all};
    const std::int64_t longest = exchange_sizes(call, sent, received);
    const auto part = static_cast<std::int64_t>(part_);
    for (std::int64_t begin = 0; begin < longest; begin += part) {
      auto length = [&](std::int64_t all) {
        return static_cast<std::size_t>(std::clamp<std::int64_t>(all - begin, 0, part));
      };
      const char* from = static_cast<const char*>(input);
      for (int other = 0; other < size_; from += sent[static_cast<std::size_t>(other++)])
        copy_bytes(out() + part_of(other), from + begin, length(sent[static_cast<std::size_t>(other)]));
      meet(call);
      char* to = static_cast<char*>(output);
      for (int other = 0; other < size_; to += received[static_cast<std::size_t>(other++)])
        copy_bytes(to + begin, in(other) + part_of(rank_), length(received[static_cast<std::size_t>(other)]));
    }
  }
  std::unique_ptr<PendingTransfer> send(const at::Tensor& tensor, int rank, int tag) override {
    return transfer(shared_->mailbox.send(tensor, rank, tag), "send", rank);
  }
  std::unique_ptr<PendingTransfer> receive(const at::Tensor& tensor, int rank, int tag) override {
    return transfer(shared_->mailbox.receive(tensor, rank, tag), "recv", rank);
  }

 private:
  static std::int64_t bytes_of(std::int64_t count, at::ScalarType type) {
    return count * static_cast<std::int64_t>(c10::elementSize(type));
  }
  static std::int64_t items_of(std::size_t bytes, at::ScalarType type) {
    return static_cast<std::int64_t>(bytes / c10::elementSize(type));
  }
  char* slot(std::uint64_t turn, int rank) const {
    return shared_->slots + ((turn & 1) * static_cast<std::size_t>(size_) + static_cast<std::size_t>(rank)) * slot_;
  }
  char* out() const { return slot(barrier_.count() + 1, rank_); }
  const char* in(int rank) const { return slot(barrier_.count(), rank); }
  std::size_t part_of(int rank) const { return static_cast<std::size_t>(rank) * part_; }

  /// Which bytes of a piece a rank reduces, and how many items those are.
  std::pair<std::size_t, std::int64_t> share_of(int rank, std::size_t bytes, at::ScalarType type) const {
    auto items = items_of(bytes, type), first = items * rank / size_, end = items * (rank + 1) / size_;
    return {static_cast<std::size_t>(bytes_of(first, type)), end - first};
  }
  void meet(const CollectiveCall& call) {
    if (!barrier_.meet(call.mark(), call.name(), timeout_)) [[unlikely]]
      mismatch_.tell(*this, call);
  }
  // At least one, so that ranks which bring nothing meet as well.
  template <class Do>
  void in_pieces(const CollectiveCall& call, std::size_t most, Do&& act) {
    most = most / kCacheLine * kCacheLine;  // whole items of any type
    const auto all = static_cast<std::size_t>(call.bytes);
    std::size_t begin = 0;
    do {
      act(begin, std::min(most, all - begin));
      begin += most;
    } while (begin < all);
  }
  // A piece of what is for each rank.
  void write_parts(const void* input, std::size_t bytes_each, std::size_t begin, std::size_t bytes) {
    for (int other = 0; other < size_; ++other)
      copy_bytes(out() + part_of(other),
                 static_cast<const char*>(input) + static_cast<std::size_t>(other) * bytes_each + begin, bytes);
  }
  // From each rank to those that have an output.
  void collect(const CollectiveCall& call, const void* input, void* output) {
    in_pieces(call, slot_, [&](std::size_t begin, std::size_t bytes) {
      copy_bytes(out(), static_cast<const char*>(input) + begin, bytes);
      meet(call);
      for (int other = 0; output && other < size_; ++other)
        copy_bytes(
            static_cast<char*>(output) + static_cast<std::size_t>(other) * static_cast<std::size_t>(call.bytes) + begin,
            in(other), bytes);
    });
  }
  // Each rank's sizes are known to all, so that all find the same fault. Returns the largest.
  std::int64_t exchange_sizes(const CollectiveCall& call, const std::vector<std::int64_t>& sent,
                              const std::vector<std::int64_t>& received) {
    const auto count = static_cast<std::size_t>(size_);
    auto* mine = reinterpret_cast<std::int64_t*>(out());
    std::copy_n(sent.begin(), count, mine);
    std::copy_n(received.begin(), count, mine + count);
    meet(call);
    std::int64_t longest = 0;
    for (int from = 0; from < size_; ++from)
      for (int to = 0; to < size_; ++to) {
        auto told = reinterpret_cast<const std::int64_t*>(in(from))[to];
        auto wanted = reinterpret_cast<const std::int64_t*>(in(to))[count + static_cast<std::size_t>(from)];
        if (told != wanted)
          throw MismatchError("all_to_all: rank " + std::to_string(from) + " sends " + std::to_string(told) +
                              " bytes to rank " + std::to_string(to) + ", which has room for " +
                              std::to_string(wanted));
        longest = std::max(longest, told);
      }
    return longest;
  }
  std::unique_ptr<PendingTransfer> transfer(std::shared_ptr<Mailbox::Message> message, const char* operation,
                                            int peer) {
    return std::make_unique<ShmTransfer>(shared_, std::move(message), operation, rank_, peer, timeout_);
  }

  int rank_, size_;
  std::size_t slot_, part_;
  std::atomic<milliseconds> timeout_;  // another thread than the one that works here may set it
  std::shared_ptr<SharedState> shared_;
  SharedMemoryBarrier& barrier_;
  MismatchTeller mismatch_;
};

}  // namespace

std::size_t shm_bytes(int size) {
  return whole_lines(SharedMemoryBarrier::bytes_for(size)) + whole_lines(Mailbox::bytes_for(size)) +
         2 * static_cast<std::size_t>(size) * slot_bytes(size);
}

std::unique_ptr<Communicator> make_shm_communicator(int rank, int size, std::unique_ptr<SharedSegment> segment,
                                                    milliseconds timeout) {
  return std::make_unique<ShmCommunicator>(rank, size, std::move(segment), timeout);
}

}  // namespace fabric::collectives
