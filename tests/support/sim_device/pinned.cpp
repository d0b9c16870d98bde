#include "tests/support/sim_device/pinned.h"

#include <sys/mman.h>

#include <map>

#include <c10/util/Exception.h>

#include "tests/support/sim_device/arena.h"
#include "tests/support/sim_device/kernel.h"
#include "tests/support/sim_device/memory.h"

namespace sim {
namespace {

struct Flight {
  std::size_t begin, end;  // in the arena
  Access copy;
  bool into_host;
};

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override;
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
  Block& holding(const void* host_address) {
    return *std::prev(blocks_.upper_bound(arena.offset(host_address)))->second;
  }
  void add(const Flight& flight);
  void settle();

  Arena arena;
  std::vector<Flight> flights;

 private:
  void protect(const Flight& flight) const {
    arena.protect(flight.begin, flight.end, flight.into_host ? PROT_NONE : PROT_READ);
  }
  bool is_in_flight(const Block& block) const;

  std::map<std::size_t, Block*> blocks_;             // by their offset in the arena
  std::map<std::size_t, std::vector<Block*>> free_;  // by capacity
  std::vector<Block*> waiting_;                      // freed, with copies under way
};

PinnedMemory& pinned() {
  static auto* all = new PinnedMemory;
  return *all;
}

c10::DataPtr PinnedMemory::allocate(std::size_t bytes) {
  if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
  Lock lock(Order::instance().mutex());
  // Whole pages, which are what can be protected.
  std::size_t capacity = (bytes + Arena::page() - 1) / Arena::page() * Arena::page();
  auto& free = free_[capacity];
  Block* block = nullptr;
  if (free.empty()) {
    char* address = arena.take(capacity);
    TORCH_CHECK_WITH(OutOfMemoryError, address, "sim: no pinned memory is left");
    block = new Block;
    block->bytes = address;
    block->capacity = capacity;
    block->home = kHost;
    blocks_[arena.offset(arena.host_view(address))] = block;
  } else {
    block = free.back();
    free.pop_back();
  }
  block->size = bytes;
  block->history.clear();
  return {arena.host_view(block->bytes), block,
          [](void* context) {
            Lock lock(Order::instance().mutex());
            pinned().waiting_.push_back(static_cast<Block*>(context));
            pinned().settle();
          },
          c10::Device(c10::kCPU)};
}

void PinnedMemory::add(const Flight& flight) {
  flights.push_back(flight);
  protect(flight);
}

bool PinnedMemory::is_in_flight(const Block& block) const {
  std::size_t begin = arena.offset(arena.host_view(block.bytes)), end = begin + block.capacity;
  for (const auto& flight : flights)
    if (flight.begin < end && begin < flight.end) return true;
  return false;
}

void PinnedMemory::settle() {
  const auto& seen = Order::instance().clock(kHost);
  bool any = false;
  std::erase_if(flights, [&](const Flight& flight) {
    if (!flight.copy.ordered_before(kHost, seen)) return false;
    arena.protect(flight.begin, flight.end, PROT_READ | PROT_WRITE);
    any = true;
    return true;
  });
  // Others may share a page with those that have ended.
  if (any)
    for (const auto& flight : flights) protect(flight);
  std::erase_if(waiting_, [&](Block* block) {
    if (is_in_flight(*block)) return false;
    free_[block->capacity].push_back(block);
    return true;
  });
}

}  // namespace

void map_pinned_memory() { pinned().arena.map(PROT_READ | PROT_WRITE); }
bool is_pinned(const void* address) { return pinned().arena.holds_host(address); }
c10::Allocator& pinned_allocator() { return pinned(); }

at::Tensor for_copy(const at::Tensor& host_tensor, bool writes, const Access& now) {
  const void* first = host_tensor.storage().data();
  if (!is_pinned(first)) return host_tensor;
  auto [begin, end] = bytes_of(host_tensor);
  Block& block = pinned().holding(first);
  auto shift = static_cast<std::size_t>(pinned().arena.kernel_view(first) - block.bytes);
  Order::instance().access(block, shift + begin, shift + end, writes, now);
  c10::Storage storage(c10::Storage::use_byte_size_t(), host_tensor.storage().nbytes(),
                       c10::DataPtr(pinned().arena.kernel_view(first), c10::Device(c10::kCPU)));
  return tensor_over(std::move(storage), host_tensor, c10::DispatchKeySet(c10::DispatchKey::CPU));
}

void begin_flight(const at::Tensor& host_tensor, bool into_host, const Access& now) {
  auto [begin, end] = bytes_of(host_tensor);
  std::size_t shift = pinned().arena.offset(host_tensor.storage().data());
  if (end > begin) pinned().add({shift + begin, shift + end, now, into_host});
}

void settle_flights() { pinned().settle(); }

bool pinned_fault(const void* address, const std::string& use) {
  if (!is_pinned(address)) return false;
  std::size_t at = pinned().arena.offset(address);
  for (const auto& flight : pinned().flights)
    if (at >= flight.begin && at < flight.end)
      Order::instance().report("the host " + use + " pinned memory while a copy " +
                               (flight.into_host ? "into" : "out of") + " it may still run (" + flight.copy.op +
                               " on " + name_of(flight.copy.place) +
                               "); wait for the stream, or for an event that is " + "recorded after the copy");
  pinned().arena.protect(at, at + 1, PROT_READ | PROT_WRITE);
  return true;
}

}  // namespace sim
