#include "plugins/collectives/shm/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

namespace fabric::collectives {
namespace {

// A line of the processor's cache, so that two tensors share none.
constexpr std::size_t kGrain = 64, kPage = 4096, kKeepInAnyCase = std::size_t{64} << 20;

std::size_t whole(std::size_t bytes, std::size_t grain) { return (bytes + grain - 1) / grain * grain; }

}  // namespace

// What a tensor's storage holds.
struct Arena::Block {
  std::shared_ptr<Arena> arena;
  std::size_t offset = 0, bytes = 0;
  c10::DataPtr ordinary;  // where the arena had none
  static void free(void* context) {
    std::unique_ptr<Block> block(static_cast<Block*>(context));
    if (block->bytes > 0) block->arena->give_back(block->offset, block->bytes);
  }
};

Arena::Arena(std::shared_ptr<void> owner, char* begin, std::size_t bytes)
    : owner_(std::move(owner)), begin_(begin), bytes_(bytes / kGrain * kGrain), process_(getpid()) {}

std::shared_ptr<Arena> Arena::make(std::shared_ptr<void> owner, char* begin, std::size_t bytes) {
  return std::shared_ptr<Arena>(new Arena(std::move(owner), begin, bytes));
}

at::Tensor Arena::empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!options.device().is_cpu() || options.layout() != at::kStrided || options.pinned_memory())
    return at::empty(sizes, options);
  auto tensor = at::detail::empty_generic(sizes, this, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                          c10::typeMetaToScalarType(options.dtype()), options.memory_format_opt());
  if (options.requires_grad()) tensor.set_requires_grad(true);
  return tensor;
}

// Each context keeps the arena, since a storage may ask its allocator for more at any time.
c10::DataPtr Arena::allocate(std::size_t bytes) {
  auto block = std::make_unique<Block>();
  block->arena = shared_from_this();
  void* data = nullptr;
  std::size_t offset = 0;
  const std::size_t wanted = whole(bytes, kGrain);
  if (bytes > 0 && take(wanted, offset)) {
    block->offset = offset;
    block->bytes = wanted;
    data = begin_ + offset;
  } else if (bytes > 0) {
    block->ordinary = c10::GetCPUAllocator()->allocate(bytes);
    data = block->ordinary.get();
  }
  return {data, block.release(), &Block::free, c10::Device(c10::kCPU)};
}

void Arena::copy_data(void* to, const void* from, std::size_t bytes) const { default_copy_data(to, from, bytes); }

Arena::Usage Arena::usage() const {
  std::lock_guard lock(mutex_);
  return {used_, kept_, bytes_};
}

bool Arena::take(std::size_t bytes, std::size_t& offset) {
  if (retired_ || getpid() != process_) return false;
  std::lock_guard lock(mutex_);
  auto fitting = by_size_.lower_bound({bytes, 0});
  if (fitting != by_size_.end()) {
    offset = fitting->second;
    auto found = free_.find(offset);
    auto block = found->second;
    erase(found);
    if (block.bytes > bytes) insert(offset + bytes, {block.bytes - bytes, std::min(block.kept, block.bytes - bytes)});
  } else if (bytes <= bytes_ - frontier_) {
    offset = frontier_;
    frontier_ += bytes;
  } else {
    return false;
  }
  used_ += bytes;
  return true;
}

void Arena::give_back(std::size_t offset, std::size_t bytes) {
  if (retired_ || getpid() != process_) return;
  std::lock_guard lock(mutex_);
  used_ -= bytes;
  Free block{bytes, bytes};
  auto next = free_.lower_bound(offset);
  if (next != free_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second.bytes == offset) {
      offset = before->first;
      block.bytes += before->second.bytes;
      block.kept += before->second.kept;
      next = erase(before);
    }
  }
  if (next != free_.end() && offset + block.bytes == next->first) {
    block.bytes += next->second.bytes;
    block.kept += next->second.kept;
    erase(next);
  }
  if (kept_ + block.kept > std::max(used_, kKeepInAnyCase)) drop_pages(offset, block);
  if (offset + block.bytes == frontier_ && block.kept == 0)
    frontier_ = offset;
  else
    insert(offset, block);
}

void Arena::insert(std::size_t offset, Free block) {
  free_.emplace(offset, block);
  by_size_.emplace(block.bytes, offset);
  kept_ += block.kept;
}

std::map<std::size_t, Arena::Free>::iterator Arena::erase(std::map<std::size_t, Free>::iterator block) {
  by_size_.erase({block->second.bytes, block->first});
  kept_ -= block->second.kept;
  return free_.erase(block);
}

// The system takes whole pages back.
void Arena::drop_pages(std::size_t offset, Free& block) {
  const auto address = reinterpret_cast<std::uintptr_t>(begin_) + offset;
  const auto first = whole(address, kPage), end = (address + block.bytes) / kPage * kPage;
  if (end <= first) return;
  if (madvise(reinterpret_cast<void*>(first), end - first, MADV_REMOVE) == 0) block.kept = 0;
}

}  // namespace fabric::collectives
