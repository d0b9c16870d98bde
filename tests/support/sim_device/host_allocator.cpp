#include "tests/support/sim_device/host_allocator.h"

#include <cstring>

#include <c10/core/CPUAllocator.h>

#include "tests/support/sim_device/kernel.h"

namespace sim {
namespace {

thread_local const char* op_now = nullptr;
thread_local Place place_now = kHost;
c10::Allocator* plain = nullptr;

// oneDNN frees by the pointer alone: pointer and context are the same, and one deleter serves both kinds of memory.
void free_either(void* address) {
  if (Block* block = block_at(address))
    release(block);
  else
    plain->raw_deallocate(address);
}

class HostAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* address = nullptr;
    if (!op_now)
      address = plain->raw_allocate(bytes);
    else if (Block* block = sim::allocate(bytes, place_now))
      address = block->bytes;
    return {address, address, &free_either, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_either; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

HostAllocator& instance() {
  static auto* all = new HostAllocator;
  return *all;
}

}  // namespace

const char* running_operator() { return op_now; }
Place running_place() { return place_now; }

InKernel::InKernel(Place place, const char* op) : outer_place_(place_now), outer_op_(op_now) {
  place_now = place;
  op_now = op;
}
InKernel::~InKernel() {
  place_now = outer_place_;
  op_now = outer_op_;
}

void take_over_host_allocator() {
  plain = c10::GetCPUAllocator();
  constexpr std::uint8_t kAboveAll = 255;
  c10::SetCPUAllocator(&instance(), kAboveAll);
}

c10::Allocator& host_allocator() { return instance(); }

Block* take_block(c10::StorageImpl& storage) {
  auto& pointer = storage.data_ptr();
  if (pointer.get_deleter() != &free_either) return nullptr;
  Block* block = block_at(pointer.get());
  if (!block) return nullptr;
  auto owner = storage.set_data_ptr(c10::DataPtr(pointer.get(), c10::Device(c10::kCPU)));
  owner.release_context();
  return block;
}

}  // namespace sim
