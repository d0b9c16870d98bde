#include "accelerators/torch_device.h"

#include <mutex>

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace fabric::torch_device {
namespace {

constexpr auto kAllPools = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);

// `later` waits, on the device, for what is queued on `earlier`.
void order(const c10::Stream& earlier, const c10::Stream& later) {
  c10::Event event(earlier.device_type());
  event.record(earlier);
  event.block(later);
}

// 0 where this LibTorch's allocators do not tell.
template <class Allocator>
std::int64_t total_bytes(Allocator& allocator, c10::DeviceIndex device) {
  if constexpr (requires { allocator.getMemoryInfo(device).second; })
    return static_cast<std::int64_t>(allocator.getMemoryInfo(device).second);
  else
    return 0;
}

}  // namespace

int count(c10::DeviceType type) noexcept {
  return c10::impl::hasDeviceGuardImpl(type) ? c10::impl::getDeviceGuardImpl(type)->deviceCount() : 0;
}

void set_current(c10::Device device) { c10::impl::VirtualGuardImpl(device.type()).setDevice(device); }

void synchronize(c10::Device device) { c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index()); }

Accelerator::MemoryStats memory_stats(c10::Device device) {
  auto& allocator = *c10::getDeviceAllocator(device.type());
  auto stats = allocator.getDeviceStats(device.index());
  return {.allocated_bytes = stats.allocated_bytes[kAllPools].current,
          .reserved_bytes = stats.reserved_bytes[kAllPools].current,
          .peak_allocated_bytes = stats.allocated_bytes[kAllPools].peak,
          .total_bytes = total_bytes(allocator, device.index())};
}

void reset_peak_memory(c10::Device device) { c10::getDeviceAllocator(device.type())->resetPeakStats(device.index()); }

void empty_cache(c10::DeviceType type) { c10::getDeviceAllocator(type)->emptyCache(); }

void manual_seed(c10::DeviceType type, std::uint64_t seed) {
  for (int index = 0; index < count(type); ++index) {
    c10::Device device(type, static_cast<c10::DeviceIndex>(index));
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard lock(generator.mutex());
    generator.set_current_seed(seed);
  }
}

Scope side_stream(c10::Device device) {
  c10::impl::VirtualGuardImpl guard(device.type());
  auto outer = guard.getStream(device);
  auto inner = guard.getStreamFromGlobalPool(device);
  order(outer, inner);
  guard.exchangeStream(inner);
  return Scope([guard, outer, inner] {
    order(inner, outer);
    guard.exchangeStream(outer);
  });
}

}  // namespace fabric::torch_device
