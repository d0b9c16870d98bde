// A caching allocator in the manner of LibTorch's for CUDA: free blocks go back to the stream that they were made on.
//
// A block that another stream still uses when it is freed is an error only if nobody waits before it can be used
// again. So it is kept aside, and looked at when its own stream allocates next. A block with record_stream waits until
// the host has seen those streams come to the end of what they had when it was freed.
#include "tests/support/sim_device/memory.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>

#include <c10/util/Exception.h>

#include "tests/support/sim_device/names.h"
#include "tests/support/sim_device/order.h"
#include "tests/support/sim_device/streams.h"

namespace sim {
namespace {

constexpr std::size_t kRound = 512;
constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
using Stats = c10::CachingDeviceAllocator::DeviceStats;

void release_context(void* block) { release(static_cast<Block*>(block)); }

class DeviceMemory final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    int device = current_device();
    return data_pointer(make(bytes, current_place(device)), device);
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(arena.kernel_view(to), arena.kernel_view(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override;
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    // As LibTorch's for CUDA: memory that another owner holds is not ours to keep.
    if (pointer.get_deleter() != &release_context) return;
    Lock lock(Order::instance().mutex());
    auto* block = static_cast<Block*>(pointer.get_context());
    if (block && place_of(stream) != block->home) block->recorded |= std::uint64_t{1} << place_of(stream);
  }
  Stats getDeviceStats(c10::DeviceIndex device) override { return stats_.at(static_cast<std::size_t>(device)); }
  void resetAccumulatedStats(c10::DeviceIndex device) override {
    auto& stats = stats_.at(static_cast<std::size_t>(device));
    stats.allocated_bytes[kAll].reset_accumulated();
    stats.reserved_bytes[kAll].reset_accumulated();
  }
  void resetPeakStats(c10::DeviceIndex device) override {
    auto& stats = stats_.at(static_cast<std::size_t>(device));
    stats.allocated_bytes[kAll].reset_peak();
    stats.reserved_bytes[kAll].reset_peak();
  }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex device) override {
    auto used = static_cast<std::size_t>(stats_.at(static_cast<std::size_t>(device)).reserved_bytes[kAll].current);
    return {total - std::min(total, used), total};
  }

  Block* make(std::size_t bytes, Place home);
  void give_back(Block* block);
  void settle();
  Block* holding(char* kernel_address) {
    auto after = by_address_.upper_bound(kernel_address);
    if (after == by_address_.begin()) return nullptr;
    Block* block = std::prev(after)->second;
    return kernel_address < block->bytes + block->capacity ? block : nullptr;
  }
  Block* beginning_at(char* kernel_address) {
    auto found = by_address_.find(kernel_address);
    return found == by_address_.end() ? nullptr : found->second;
  }

  Arena arena;
  std::size_t total = std::size_t{4} << 30;

 private:
  using Blocks = std::vector<Block*>;
  Stats& stats_of(const Block& block) { return stats_[static_cast<std::size_t>(block.device())]; }
  Block* take_free(std::size_t capacity, Place home);
  void put_free(Block* block) { free_[{block->home, block->capacity}].push_back(block); }
  static void begin_history(Block& block);
  void look_at_suspects(Place home);
  [[noreturn]] void refuse(std::size_t bytes, Place home);

  std::array<Stats, kDevices> stats_{};
  std::map<std::pair<Place, std::size_t>, Blocks> free_;  // by stream and capacity
  std::map<std::size_t, Blocks> unowned_;                 // given up by emptyCache, by capacity
  Blocks waiting_;                                        // freed, for streams that record_stream named
  Blocks suspects_;                                       // freed while another stream used them
  std::map<char*, Block*> by_address_;
  std::uint64_t next_id_ = 1;
};

DeviceMemory& memory() {
  static auto* all = new DeviceMemory;
  return *all;
}

// What the home stream waits for, or the host has seen, is over when the stream allocates again.
VectorClock known_at(Place home) {
  VectorClock known = Order::instance().clock(home);
  known.join(Order::instance().clock(kHost));
  return known;
}

void DeviceMemory::look_at_suspects(Place home) {
  std::erase_if(suspects_, [&](Block* block) {
    if (block->home != home) return false;
    if (auto use = block->history.unordered(home, known_at(home)))
      Order::instance().report("freed too early: " + describe(*block, 0, block->size) + " of " + name_of(home) +
                               " can be used again while " + use->with.op + (use->with_write ? " writes" : " reads") +
                               " it on " + name_of(use->with.place) + "; call record_stream, or let " + name_of(home) +
                               " wait before it is freed");
    put_free(block);
    return true;
  });
}

void DeviceMemory::refuse(std::size_t bytes, Place home) {
  auto& stats = stats_[static_cast<std::size_t>(home / kStreams)];
  ++stats.num_ooms;
  TORCH_CHECK_WITH(OutOfMemoryError, false, "sim out of memory. Tried to allocate ", bytes,
                   " bytes on sim:", home / kStreams, ", which has ", total, " bytes, ",
                   stats.allocated_bytes[kAll].current, " in use");
}

Block* DeviceMemory::take_free(std::size_t capacity, Place home) {
  for (Blocks* blocks : {&free_[{home, capacity}], &unowned_[capacity]}) {
    if (blocks->empty()) continue;
    Block* block = blocks->back();
    blocks->pop_back();
    if (blocks == &unowned_[capacity])
      stats_[static_cast<std::size_t>(home / kStreams)].reserved_bytes[kAll].increase(capacity);
    block->home = home;
    return block;
  }
  return nullptr;
}

// The home stream may still use these bytes for what was there before: others have to wait for it, as after a write.
void DeviceMemory::begin_history(Block& block) {
  const auto& clock = Order::instance().clock(block.home);
  block.history.clear();
  block.history.record(0, block.size, /*writes=*/true, {block.home, clock[block.home], "the allocation of this memory"},
                       clock);
}

Block* DeviceMemory::make(std::size_t bytes, Place home) {
  if (bytes == 0) return nullptr;
  Lock lock(Order::instance().mutex());
  look_at_suspects(home);
  std::size_t capacity = (bytes + kRound - 1) / kRound * kRound;
  auto& stats = stats_[static_cast<std::size_t>(home / kStreams)];
  auto fits = [&] { return static_cast<std::size_t>(stats.reserved_bytes[kAll].current) + capacity <= total; };
  Block* block = take_free(capacity, home);
  if (!block) {
    if (!fits()) {
      ++stats.num_alloc_retries;
      emptyCache();
      if (!fits()) refuse(bytes, home);
    }
    char* address = arena.take(capacity);
    if (!address) refuse(bytes, home);
    block = new Block;
    block->bytes = address;
    block->capacity = capacity;
    by_address_[address] = block;
    stats.reserved_bytes[kAll].increase(capacity);
  }
  block->home = home;
  block->size = bytes;
  block->id = next_id_++;
  block->recorded = 0;
  begin_history(*block);
  stats.allocated_bytes[kAll].increase(capacity);
  return block;
}

void DeviceMemory::give_back(Block* block) {
  Lock lock(Order::instance().mutex());
  stats_of(*block).allocated_bytes[kAll].decrease(block->capacity);
  block->under_way.clear();
  block->count_under_way();
  if (block->recorded != 0) {
    for (Place place = 0; place < kHost; ++place) block->freed[place] = Order::instance().clock(place)[place];
    waiting_.push_back(block);
    settle();
  } else if (block->history.unordered(block->home, known_at(block->home))) {
    suspects_.push_back(block);
  } else {
    put_free(block);
  }
}

void DeviceMemory::settle() {
  const auto& seen = Order::instance().clock(kHost);
  std::erase_if(waiting_, [&](Block* block) {
    for (Place place = 0; place < kHost; ++place)
      if ((block->recorded >> place & 1) != 0 && block->freed[place] > seen[place]) return false;
    put_free(block);
    return true;
  });
}

// CUDA waits for the device before it gives memory back, so the host knows of all that came before.
void DeviceMemory::emptyCache(c10::MempoolId_t) {
  Lock lock(Order::instance().mutex());
  for (auto& [key, blocks] : free_) {
    for (Block* block : blocks) {
      stats_of(*block).reserved_bytes[kAll].decrease(block->capacity);
      arena.discard(block->bytes, block->capacity);
      unowned_[block->capacity].push_back(block);
    }
    blocks.clear();
  }
}

}  // namespace

Arena& device_arena() { return memory().arena; }

Block* block_at(void* kernel_address) {
  if (!memory().arena.holds_kernel(kernel_address)) return nullptr;
  Lock lock(Order::instance().mutex());
  return memory().beginning_at(static_cast<char*>(kernel_address));
}

Block* block_holding(const void* host_address) {
  if (!memory().arena.holds_host(host_address)) return nullptr;
  Lock lock(Order::instance().mutex());
  return memory().holding(memory().arena.kernel_view(host_address));
}

Extent extent_of(const c10::Storage& storage) {
  const auto& pointer = storage.data_ptr();
  bool is_ours = pointer.get_deleter() == &release_context;
  auto* block = is_ours ? static_cast<Block*>(pointer.get_context()) : block_holding(pointer.get());
  if (!block) return {};
  std::size_t begin = is_ours ? 0 : static_cast<std::size_t>(device_arena().kernel_view(pointer.get()) - block->bytes);
  return {block, begin, begin + storage.nbytes()};
}

Extent extent_of(const at::Tensor& tensor) {
  auto all = extent_of(tensor.storage());
  auto [begin, end] = bytes_of(tensor);
  return {all.block, all.begin + begin, all.begin + end};
}

std::pair<std::size_t, std::size_t> bytes_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {0, 0};
  std::int64_t items = 1;
  for (std::int64_t i = 0; i < tensor.dim(); ++i) items += (tensor.size(i) - 1) * tensor.stride(i);
  auto begin = static_cast<std::size_t>(tensor.storage_offset()) * tensor.itemsize();
  return {begin, begin + static_cast<std::size_t>(items) * tensor.itemsize()};
}

Block* allocate(std::size_t bytes, Place home) { return memory().make(bytes, home); }
void release(Block* block) {
  if (block) memory().give_back(block);
}

c10::DataPtr data_pointer(Block* block, int device) {
  void* address = block ? memory().arena.host_view(block->bytes) : nullptr;
  return {address, block, &release_context,
          c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device))};
}

c10::DeviceAllocator& device_allocator() { return memory(); }
void set_capacity(std::size_t bytes) { memory().total = bytes; }
std::size_t capacity() { return memory().total; }
void settle_blocks() { memory().settle(); }

}  // namespace sim
