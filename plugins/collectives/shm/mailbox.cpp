#include "plugins/collectives/shm/mailbox.h"

#include <algorithm>
#include <cstring>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

constexpr std::size_t kRingLine = 64, kMostOfRing = 64 * 1024, kMostOfRings = 16 << 20;

// The rings of all pairs together stay within a bound, however many ranks there are.
std::size_t ring_capacity(int size) {
  const auto pairs = static_cast<std::size_t>(size) * static_cast<std::size_t>(size);
  return std::clamp(kMostOfRings / pairs / kRingLine * kRingLine, kRingLine, kMostOfRing);
}

}  // namespace

struct Mailbox::Ring {
  alignas(kRingLine) std::atomic<std::uint64_t> written;
  std::atomic<std::uint32_t> full;  // the sender has more and found no room
  alignas(kRingLine) std::atomic<std::uint64_t> read;
  alignas(kRingLine) char bytes[1];  // as many as the capacity
};

struct Mailbox::Message {
  Header header;
  int peer = -1;
  at::Tensor tensor;
  std::size_t header_done = 0, done = 0;
  bool is_done = false;
  std::string problem;
};

// Messages of one rank: the one that is read now, and those that came before anybody asked for them.
struct Mailbox::Incoming {
  struct Kept {
    Header header;
    std::vector<char> bytes;
  };
  Header header;
  std::size_t header_done = 0, done = 0;
  std::shared_ptr<Message> target;  // of the message that is read; null: it goes to `early`
  std::vector<char> early;
  std::deque<Kept> kept;
};

Mailbox::Mailbox(int rank, int size, void* memory, Bell& bell)
    : rank_(rank),
      size_(size),
      memory_(static_cast<char*>(memory)),
      bell_(bell),
      outgoing_(static_cast<std::size_t>(size)) {
  for (int i = 0; i < size; ++i) incoming_.push_back(std::make_unique<Incoming>());
}
Mailbox::~Mailbox() = default;

std::size_t Mailbox::bytes_for(int size) {
  const auto pairs = static_cast<std::size_t>(size) * static_cast<std::size_t>(size);
  return pairs * (2 * kRingLine + ring_capacity(size));
}

Mailbox::Ring& Mailbox::ring(int from, int to) const {
  const auto index = static_cast<std::size_t>(to) * static_cast<std::size_t>(size_) + static_cast<std::size_t>(from);
  return *reinterpret_cast<Ring*>(memory_ + index * (2 * kRingLine + ring_capacity(size_)));
}

std::shared_ptr<Mailbox::Message> Mailbox::send(const at::Tensor& tensor, int to, int tag) {
  auto message = std::make_shared<Message>();
  message->header = {tag, static_cast<std::int64_t>(tensor.nbytes())};
  message->peer = to;
  message->tensor = tensor;
  outgoing_[static_cast<std::size_t>(to)].push_back(message);
  write_to(to);
  return message;
}

std::shared_ptr<Mailbox::Message> Mailbox::receive(const at::Tensor& tensor, int from, int tag) {
  auto message = std::make_shared<Message>();
  message->header = {tag, static_cast<std::int64_t>(tensor.nbytes())};
  message->peer = from;
  message->tensor = tensor;
  posted_.push_back(message);
  for (int rank = 0; rank < size_; ++rank)
    if (from < 0 || from == rank) deliver(*incoming_[static_cast<std::size_t>(rank)], rank);
  move();
  return message;
}

bool Mailbox::is_done(const Message& message) const { return message.is_done; }

int Mailbox::source_of(const Message& message) const {
  if (!message.problem.empty()) throw MismatchError(message.problem);
  return message.peer;
}

void Mailbox::move() {
  for (int rank = 0; rank < size_; ++rank) {
    if (!outgoing_[static_cast<std::size_t>(rank)].empty()) write_to(rank);
    read_from(rank);
  }
}

// Whether all of it is in the ring.
bool Mailbox::push(Ring& ring, const void* bytes, std::size_t size, std::size_t& done) const {
  const auto capacity = ring_capacity(size_);
  while (done < size) {
    auto written = ring.written.load(std::memory_order_relaxed);
    auto room = capacity - (written - ring.read.load());
    if (room == 0) {
      if (ring.full.load(std::memory_order_relaxed) != 0) return false;
      ring.full.store(1);  // and then looks once more
      continue;
    }
    auto at = written % capacity;
    auto count = std::min({size - done, room, capacity - at});
    std::memcpy(ring.bytes + at, static_cast<const char*>(bytes) + done, count);
    done += count;
    ring.written.store(written + count);
  }
  return true;
}

void Mailbox::write_to(int rank) {
  auto& queue = outgoing_[static_cast<std::size_t>(rank)];
  auto& to = ring(rank_, rank);
  const auto before = to.written.load(std::memory_order_relaxed);
  while (!queue.empty()) {
    auto& message = *queue.front();
    if (!push(to, &message.header, sizeof message.header, message.header_done)) break;
    if (!push(to, message.tensor.const_data_ptr(), static_cast<std::size_t>(message.header.bytes), message.done)) break;
    message.is_done = true;
    queue.pop_front();
  }
  if (to.written.load(std::memory_order_relaxed) != before) bell_.ring_for(rank);
}

std::list<std::shared_ptr<Mailbox::Message>>::iterator Mailbox::first_that_fits(int from, std::int64_t tag) {
  return std::find_if(posted_.begin(), posted_.end(), [&](const auto& each) {
    return (each->peer < 0 || each->peer == from) && each->header.tag == tag;
  });
}

// Gives what came early to those who wait for it by now.
void Mailbox::deliver(Incoming& from, int rank) {
  for (auto kept = from.kept.begin(); kept != from.kept.end();) {
    auto found = first_that_fits(rank, kept->header.tag);
    if (found == posted_.end()) {
      ++kept;
      continue;
    }
    auto message = *found;
    posted_.erase(found);
    message->peer = rank;
    if (kept->header.bytes > message->header.bytes)
      message->problem = "recv has room for " + std::to_string(message->header.bytes) + " bytes, rank " +
                         std::to_string(rank) + " sent " + std::to_string(kept->header.bytes);
    else if (kept->header.bytes > 0)
      std::memcpy(message->tensor.mutable_data_ptr(), kept->bytes.data(), kept->bytes.size());
    message->is_done = true;
    kept = from.kept.erase(kept);
  }
}

void Mailbox::read_from(int rank) {
  auto& in = ring(rank, rank_);
  auto& state = *incoming_[static_cast<std::size_t>(rank)];
  const auto capacity = ring_capacity(size_);
  auto take = [&](void* to, std::size_t size, std::size_t& done) {
    while (done < size) {
      auto read = in.read.load(std::memory_order_relaxed);
      auto there = in.written.load(std::memory_order_acquire) - read;
      if (there == 0) return false;
      auto at = read % capacity;
      auto count = std::min<std::size_t>({size - done, static_cast<std::size_t>(there), capacity - at});
      std::memcpy(static_cast<char*>(to) + done, in.bytes + at, count);
      done += count;
      in.read.store(read + count);
      if (in.full.load() != 0 && in.full.exchange(0) != 0) bell_.ring_for(rank);
    }
    return true;
  };
  while (true) {
    if (state.header_done < sizeof state.header) {
      if (!take(&state.header, sizeof state.header, state.header_done)) return;
      auto found = first_that_fits(rank, state.header.tag);
      // One that is too small for it gets it by way of `early`, and is told.
      const bool has_room = found != posted_.end() && (*found)->header.bytes >= state.header.bytes;
      state.target = has_room ? *found : nullptr;
      if (has_room)
        posted_.erase(found);
      else
        state.early.resize(static_cast<std::size_t>(state.header.bytes));
    }
    void* to = state.target ? state.target->tensor.mutable_data_ptr() : state.early.data();
    if (!take(to, static_cast<std::size_t>(state.header.bytes), state.done)) return;
    if (state.target) {
      state.target->peer = rank;
      state.target->is_done = true;
    } else {
      state.kept.push_back({state.header, std::move(state.early)});
      deliver(state, rank);
    }
    state.target = nullptr;
    state.early = {};
    state.header_done = state.done = 0;
  }
}

}  // namespace fabric::collectives
