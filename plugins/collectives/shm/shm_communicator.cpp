// Collectives in shared memory, in pieces that stay in the processor's cache.
//
// Each rank has two slots, used in turn as the count of meetings is even or odd (SharedMemoryBarrier). Ahead of a
// meeting a rank writes to its slot of the coming turn (`out`); after it, it reads the slots of all (`in`). A slot is
// written again two meetings later, and whoever comes to the meeting between has read it: so one meeting for each piece
// is enough. An all-reduce needs two: after the first each rank reduces its share of the piece, for all, in the order
// of the ranks, into its slot of the next turn, from where all take it after the second.
//
// Tensors that lie in the segment itself (Arena) take no slots: each rank brings the place of its tensor to the
// meeting, and where all of those that are read have one, the ranks read, and in reductions write, one another's
// tensors, and meet again before anyone goes on; a gathering goes the other way where all outputs have one. Between the
// two meetings a byte is written by one rank alone, which has read it by then wherever it is read. A rank that fails
// there hands out no shared memory any more, since another may still write.
#include "plugins/collectives/shm/shm_communicator.h"

#include <sys/sysinfo.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>

#include <ATen/ops/empty.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <fabric/base/error.h>

#include "plugins/collectives/communicator/collective_call.h"
#include "plugins/collectives/communicator/local_reduction.h"
#include "plugins/collectives/communicator/mismatch_teller.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/shm/arena.h"
#include "plugins/collectives/shm/mailbox.h"
#include "plugins/collectives/shm/patience.h"
#include "plugins/collectives/shm/shared_memory_barrier.h"
#include "plugins/collectives/shm/small_reduction.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kMostOfSlot = 256 * 1024, kMostOfSlots = 2 << 20, kLeastOfSlot = 16 * 1024, kCacheLine = 64,
                      kPage = 4096;
// Less than this goes through the slots, where one meeting is enough.
constexpr std::int64_t kLeastInPlace = 16 * 1024;
// Addresses, not memory: of 2^47 that a process has.
constexpr std::size_t kMostReserved = std::size_t{1} << 44;

std::size_t slot_bytes(int size) {
  return std::clamp(kMostOfSlots / static_cast<std::size_t>(size), kLeastOfSlot, kMostOfSlot) / kCacheLine * kCacheLine;
}
std::size_t whole(std::size_t bytes, std::size_t grain) { return (bytes + grain - 1) / grain * grain; }
std::size_t whole_lines(std::size_t bytes) { return whole(bytes, kCacheLine); }

// What the ranks of a group meet in.
std::size_t bytes_to_meet(int size) {
  return whole_lines(SharedMemoryBarrier::bytes_for(size)) + whole_lines(Mailbox::bytes_for(size)) +
         2 * static_cast<std::size_t>(size) * slot_bytes(size);
}

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

// The segment of a group of all ranks and of the groups that are made of its ranks.
struct Home {
  Home(int rank, int size, std::unique_ptr<SharedSegment> memory) : segment(std::move(memory)) {
    const auto begin = whole(bytes_to_meet(size), kPage);
    const auto each = (segment->size() - begin) / static_cast<std::size_t>(size) / kPage * kPage;
    tensors = segment->data() + begin;
    arena = Arena::make(segment, tensors + static_cast<std::size_t>(rank) * each, each);
  }
  /// Where others find this memory; -1: nowhere.
  std::int64_t place_of(const void* memory, std::size_t bytes) const {
    const auto* at = static_cast<const char*>(memory);
    if (at < tensors || at + bytes > segment->data() + segment->size()) return -1;
    return at - segment->data();
  }
  /// Memory for a subgroup to meet in, which lasts until all of its ranks have left; undefined: there is none.
  at::Tensor to_meet_in(int size) {
    std::erase_if(meeting_places, [](const auto& place) {
      return SharedMemoryBarrier::everybody_left(place.first.const_data_ptr(), place.second);
    });
    auto memory = arena->empty({static_cast<std::int64_t>(bytes_to_meet(size))}, at::kByte);
    if (place_of(memory.const_data_ptr(), memory.nbytes()) < 0) return {};
    std::memset(memory.mutable_data_ptr(), 0, memory.nbytes());
    meeting_places.emplace_back(memory, size);
    return memory;
  }
  std::shared_ptr<SharedSegment> segment;
  std::shared_ptr<Arena> arena;
  char* tensors = nullptr;
  std::vector<std::pair<at::Tensor, int>> meeting_places;
};

// What outlives the communicator where a send or receive is kept longer.
struct SharedState {
  /// `memory`: bytes_to_meet(size), in which no rank has met yet. `members`: the ranks' numbers in the segment.
  SharedState(int rank, std::vector<int> ranks, std::shared_ptr<Home> place, char* memory)
      : home(std::move(place)),
        members(std::move(ranks)),
        barrier(rank, size(), memory,
                {.is_gone = [this](int other) { return is_dead(other); }, .meanwhile = [this] { mailbox.move(); }}),
        mailbox(rank, size(), memory + whole_lines(SharedMemoryBarrier::bytes_for(size())), barrier.bell()),
        slots(memory + whole_lines(SharedMemoryBarrier::bytes_for(size())) + whole_lines(Mailbox::bytes_for(size()))) {}
  int size() const { return static_cast<int>(members.size()); }
  bool is_dead(int rank) const { return home->segment->is_gone(members[static_cast<std::size_t>(rank)]); }
  std::shared_ptr<Home> home;
  std::vector<int> members;
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
      if (peer_ >= 0 && patience.is_to_look_around() && is_gone(peer_) && !done())
        throw CollectiveError("rank " + std::to_string(rank_) + ": " + operation_ + " cannot end, since rank " +
                              std::to_string(peer_) + " is gone: its process ended, or it left the group");
    }
    source_ = shared_->mailbox.source_of(*message_);
  }
  int source() const override { return source_; }

 private:
  bool is_gone(int rank) const { return shared_->barrier.has_left(rank) || shared_->is_dead(rank); }
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
  ShmCommunicator(int rank, std::shared_ptr<SharedState> shared, milliseconds timeout)
      : rank_(rank),
        size_(shared->size()),
        slot_(slot_bytes(size_)),
        part_(slot_ / static_cast<std::size_t>(size_) / kCacheLine * kCacheLine),
        timeout_(timeout),
        shared_(std::move(shared)),
        barrier_(shared_->barrier),
        peers_(static_cast<std::size_t>(size_)) {}
  ~ShmCommunicator() override { barrier_.leave(); }

  const char* what() const override { return "shared memory"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool allows_threads() const override { return false; }
  std::unique_ptr<Communicator> duplicate() override { throw MisuseError("shared memory is used by one thread"); }
  // In memory that its first rank gives, so that tensors are found by its ranks as well. Where there is none it is made
  // anew, by way of the store.
  std::unique_ptr<Communicator> subset(const std::vector<int>& ranks, int tag) override {
    const int leader = ranks.front(), internal_tag = -1 - tag;
    auto told = at::empty({1}, at::kLong);
    auto* place = told.mutable_data_ptr<std::int64_t>();
    if (rank_ == leader) {
      auto memory = shared_->home->to_meet_in(static_cast<int>(ranks.size()));
      *place = memory.defined() ? shared_->home->place_of(memory.const_data_ptr(), memory.nbytes()) : -1;
      for (int rank : ranks)
        if (rank != rank_) transfer(shared_->mailbox.send(told, rank, internal_tag), "making a subgroup", rank)->wait();
    } else {
      transfer(shared_->mailbox.receive(told, leader, internal_tag), "making a subgroup", leader)->wait();
    }
    if (*place < 0) return nullptr;
    std::vector<int> members;
    for (int rank : ranks) members.push_back(shared_->members[static_cast<std::size_t>(rank)]);
    const auto own = std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin();
    auto state = std::make_shared<SharedState>(static_cast<int>(own), std::move(members), shared_->home,
                                               shared_->home->segment->data() + *place);
    return std::make_unique<ShmCommunicator>(static_cast<int>(own), std::move(state), timeout_);
  }
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) override {
    return shared_->home->arena->empty(sizes, options);
  }
  void set_timeout(milliseconds timeout) override { timeout_ = timeout; }

  // Once a wait has failed another rank may take its time over this one's tensors: what they lie in is not used again.
  bool agree(std::int64_t mark, const char* operation) override {
    try {
      return barrier_.meet(mark, operation, timeout_);
    } catch (...) {
      shared_->home->arena->retire();
      throw;
    }
  }
  void barrier() override { meet({CallKind::barrier}); }

  void all_reduce(void* data, std::int64_t count, at::ScalarType type, Op op) override {
    require_reducible(type, op);
    const CollectiveCall call{CallKind::all_reduce, bytes_of(count, type), type, op};
    if (static_cast<std::size_t>(call.bytes) <= barrier_.capacity())
      return all_reduce_at_barrier(barrier_, data, count, type, op, [&] { meet(call); });
    if (meet_with_place(call, data, call.bytes)) {
      auto [first, items] = share_of(rank_, static_cast<std::size_t>(call.bytes), type);
      reduce_places(first, items, type, op, peers_);
      return meet(call);
    }
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
    if (call.bytes >= kLeastInPlace && meet_with_place(call, data, call.bytes)) {
      auto [first, items] = share_of(rank_, static_cast<std::size_t>(call.bytes), type);
      reduce_places(first, items, type, op, {peers_[static_cast<std::size_t>(root)]});
      return meet(call);
    }
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
    if (call.bytes >= kLeastInPlace && meet_with_place(call, input, call.bytes * size_)) {
      const auto first = rank_ * call.bytes;
      reduce_places(static_cast<std::size_t>(first), count_each, type, op, {static_cast<char*>(output) - first});
      return meet(call);
    }
    in_pieces(call, part_, [&](std::size_t begin, std::size_t bytes) {
      write_parts(input, static_cast<std::size_t>(call.bytes), begin, bytes);
      meet(call);
      reduce_in_rank_order(in(0) + part_of(rank_), slot_, size_, static_cast<char*>(output) + begin,
                           items_of(bytes, type), type, op);
    });
  }
  void broadcast(void* data, std::int64_t bytes, int root) override {
    const CollectiveCall call{.kind = CallKind::broadcast, .bytes = bytes, .root = root};
    if (bytes >= kLeastInPlace && meet_with_place(call, data, bytes, root)) {
      broadcast_place(static_cast<char*>(data), static_cast<std::size_t>(bytes), root);
      return meet(call);
    }
    in_pieces(call, slot_, [&](std::size_t begin, std::size_t length) {
      char* here = static_cast<char*>(data) + begin;
      if (rank_ == root) copy_bytes(out(), here, length);
      meet(call);
      if (rank_ != root) copy_bytes(here, in(root), length);
    });
  }
  void all_gather(const void* input, void* output, std::int64_t bytes_each) override {
    const CollectiveCall call{CallKind::all_gather, bytes_each};
    if (bytes_each < kLeastInPlace) return collect(call, input, output);
    const auto each = static_cast<std::size_t>(bytes_each), count = static_cast<std::size_t>(size_);
    barrier_.bring(shared_->home->place_of(input, each), shared_->home->place_of(output, each * count));
    meet(call);
    const bool is_read = find_peers(-1);
    if (!is_read && !find_peers(-1, 1)) return collect(call, input, output);
    for (std::size_t other = 0; other < count; ++other)
      if (is_read)
        copy_bytes(static_cast<char*>(output) + other * each, peers_[other], each);
      else
        copy_bytes(peers_[other] + static_cast<std::size_t>(rank_) * each, input, each);
    meet(call);
  }
  void gather(const void* input, void* output, std::int64_t bytes_each, int root) override {
    const CollectiveCall call{.kind = CallKind::gather, .bytes = bytes_each, .root = root};
    const auto each = static_cast<std::size_t>(bytes_each);
    if (bytes_each < kLeastInPlace || !meet_with_place(call, input, bytes_each))
      return collect(call, input, rank_ == root ? output : nullptr);
    for (int other = 0; rank_ == root && other < size_; ++other)
      copy_bytes(static_cast<char*>(output) + static_cast<std::size_t>(other) * each,
                 peers_[static_cast<std::size_t>(other)], each);
    meet(call);
  }
  void scatter(const void* input, void* output, std::int64_t bytes_each, int root) override {
    const CollectiveCall call{.kind = CallKind::scatter, .bytes = bytes_each, .root = root};
    if (bytes_each >= kLeastInPlace && meet_with_place(call, input, bytes_each * size_, root)) {
      copy_bytes(output, peers_[static_cast<std::size_t>(root)] + rank_ * bytes_each,
                 static_cast<std::size_t>(bytes_each));
      return meet(call);
    }
    in_pieces(call, part_, [&](std::size_t begin, std::size_t bytes) {
      if (rank_ == root) write_parts(input, static_cast<std::size_t>(bytes_each), begin, bytes);
      meet(call);
      copy_bytes(static_cast<char*>(output) + begin, in(root) + part_of(rank_), bytes);
    });
  }
  void all_to_all(const void* input, const std::vector<std::int64_t>& sent, void* output,
                  const std::vector<std::int64_t>& received) override {
    const CollectiveCall call{CallKind::all_to_all};
    const std::int64_t longest = exchange_sizes(call, input, sent, received);
    if (longest >= kLeastInPlace && find_peers(-1)) {
      char* to = static_cast<char*>(output);
      for (int other = 0; other < size_; to += received[static_cast<std::size_t>(other++)]) {
        const auto* lengths = reinterpret_cast<const std::int64_t*>(in(other));
        copy_bytes(to,
                   peers_[static_cast<std::size_t>(other)] + std::accumulate(lengths, lengths + rank_, std::int64_t{0}),
                   static_cast<std::size_t>(lengths[rank_]));
      }
      return meet(call);
    }
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
    if (!agree(call.mark(), call.name())) [[unlikely]]
      mismatch_.tell(*this, call);
  }
  /// Meets; whether the memory that counts (all ranks' or one's) is where the others reach it: peers_ is that then.
  bool meet_with_place(const CollectiveCall& call, const void* memory, std::int64_t bytes, int whose = -1) {
    barrier_.bring(memory ? shared_->home->place_of(memory, static_cast<std::size_t>(bytes)) : -1);
    meet(call);
    return find_peers(whose);
  }
  bool find_peers(int whose, int which = 0) {
    for (int rank = 0; rank < size_; ++rank) {
      if (whose >= 0 && rank != whose) continue;
      const auto place = barrier_.brought(rank, which);
      if (place < 0) return false;
      peers_[static_cast<std::size_t>(rank)] = shared_->home->segment->data() + place;
    }
    return true;
  }
  /// The others read what the root has; where it reaches them it writes the last part for each, so that all have as
  /// much to do.
  void broadcast_place(char* data, std::size_t bytes, int root) {
    const bool all_reached = find_peers(-1);
    const auto cut = all_reached ? whole_lines(bytes / static_cast<std::size_t>(size_)) : 0;
    const auto most = bytes - std::min(cut, bytes);
    if (rank_ != root) return copy_bytes(data, peers_[static_cast<std::size_t>(root)], most);
    for (int other = 0; all_reached && other < size_; ++other)
      copy_bytes(peers_[static_cast<std::size_t>(other)] + most, data + most, bytes - most);
  }
  /// Reduces these items of all ranks' memory into the same place of `targets`.
  void reduce_places(std::size_t first, std::int64_t items, at::ScalarType type, Op op,
                     c10::ArrayRef<char*> targets) const {
    c10::SmallVector<const void*, 64> from;
    c10::SmallVector<void*, 64> to;
    for (char* peer : peers_) from.push_back(peer + first);
    for (char* target : targets) to.push_back(target + first);
    reduce_in_rank_order(from.data(), size_, to.data(), static_cast<int>(to.size()), items, type, op);
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
    const auto each = static_cast<std::size_t>(call.bytes);
    in_pieces(call, slot_, [&](std::size_t begin, std::size_t bytes) {
      copy_bytes(out(), static_cast<const char*>(input) + begin, bytes);
      meet(call);
      for (int other = 0; output && other < size_; ++other)
        copy_bytes(static_cast<char*>(output) + static_cast<std::size_t>(other) * each + begin, in(other), bytes);
    });
  }
  // Each rank's sizes are known to all, so that all find the same fault. Returns the largest.
  std::int64_t exchange_sizes(const CollectiveCall& call, const void* input, const std::vector<std::int64_t>& sent,
                              const std::vector<std::int64_t>& received) {
    const auto count = static_cast<std::size_t>(size_);
    auto* mine = reinterpret_cast<std::int64_t*>(out());
    std::copy_n(sent.begin(), count, mine);
    std::copy_n(received.begin(), count, mine + count);
    const auto all = std::accumulate(sent.begin(), sent.end(), std::int64_t{0});
    barrier_.bring(shared_->home->place_of(input, static_cast<std::size_t>(all)));
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
  std::vector<char*> peers_;  // where the ranks' memory of this operation lies
  MismatchTeller mismatch_;
};

}  // namespace

std::unique_ptr<SharedSegment> make_shm_segment(int size) {
  const auto count = static_cast<std::size_t>(size);
  struct sysinfo machine {};
  sysinfo(&machine);
  const auto each = std::min<std::size_t>(machine.totalram * machine.mem_unit, kMostReserved / count) / kPage * kPage;
  return SharedSegment::make(whole(bytes_to_meet(size), kPage), count * each);
}

std::unique_ptr<Communicator> make_shm_communicator(int rank, int size, std::unique_ptr<SharedSegment> segment,
                                                    milliseconds timeout) {
  auto home = std::make_shared<Home>(rank, size, std::move(segment));
  char* memory = home->segment->data();
  std::vector<int> members(static_cast<std::size_t>(size));
  std::iota(members.begin(), members.end(), 0);
  return std::make_unique<ShmCommunicator>(
      rank, std::make_shared<SharedState>(rank, std::move(members), std::move(home), memory), timeout);
}

}  // namespace fabric::collectives
