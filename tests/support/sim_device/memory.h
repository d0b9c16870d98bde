#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "tests/support/sim_device/arena.h"
#include "tests/support/sim_device/byte_history.h"

namespace sim {

/// What another thread does to a block's bytes. Those of one ticket begin and end together.
struct UnderWay {
  std::uint64_t ticket = 0;
  std::shared_future<void> done;
};

/// One allocation on a device. It belongs to the stream it was made on, and is used again there after it is freed.
struct Block {
  char* bytes = nullptr;  // in the kernels' view
  std::size_t size = 0;
  std::size_t capacity = 0;
  Place home = 0;
  std::uint64_t id = 0;
  std::uint64_t recorded = 0;  // a bit for each stream that record_stream named
  VectorClock freed;           // where those streams stood when it was freed
  ByteHistory history;
  /// Operations of other threads that fill these bytes still, whatever the clocks say.
  std::vector<UnderWay> under_way;
  std::atomic<int> under_way_count{0};  // its size, for who looks without the lock

  bool is_under_way() const { return under_way_count.load(std::memory_order_acquire) > 0; }
  void count_under_way() { under_way_count.store(static_cast<int>(under_way.size()), std::memory_order_release); }
  int device() const { return home / kStreams; }
};

/// The devices' memory: the host's view of it is never accessible. All devices share the address space; how much each
/// has is a setting.
Arena& device_arena();
inline bool is_sim(const at::Tensor& tensor) { return tensor.device().type() == c10::DeviceType::PrivateUse1; }

/// The bytes from `begin` to `end` of a block; no block for tensors without bytes.
struct Extent {
  Block* block = nullptr;
  std::size_t begin = 0, end = 0;
};
/// Of a storage. One that the program made over the device's memory, with an owner of its own, may begin inside a
/// block.
Extent extent_of(const c10::Storage& storage);
/// From the first to the last byte that the tensor reaches.
Extent extent_of(const at::Tensor& tensor);
inline Block* block_of(const at::Tensor& tensor) { return extent_of(tensor.storage()).block; }
/// The block that a pointer of the kernels' view begins; null for other memory.
Block* block_at(void* kernel_address);
/// The block that holds this address of the host's view, and null.
Block* block_holding(const void* host_address);
/// First and last byte of the storage that the tensor reaches, as [begin, end).
std::pair<std::size_t, std::size_t> bytes_of(const at::Tensor& tensor);

/// Null for no bytes. Throws c10::OutOfMemoryError.
Block* allocate(std::size_t bytes, Place home);
void release(Block* block);
c10::DataPtr data_pointer(Block* block, int device);

c10::DeviceAllocator& device_allocator();
/// What a device has; at first 4 GiB.
void set_capacity(std::size_t bytes);
std::size_t capacity();
/// Blocks that wait for streams which the host has caught up with are free again.
void settle_blocks();

}  // namespace sim
