#pragma once

#include <cstdint>

#include <fabric/accelerators/accelerator.h>

/// What LibTorch does with any kind of device through one interface: its guards, its device allocators, its default
/// generators. What has no such interface is each accelerator's own (architecture.md lists it for CUDA).
namespace fabric::torch_device {

/// 0 where LibTorch has no such devices in this process. Throws nothing.
FABRIC_API int count(c10::DeviceType type) noexcept;
FABRIC_API void set_current(c10::Device device);
FABRIC_API void synchronize(c10::Device device);
FABRIC_API Accelerator::MemoryStats memory_stats(c10::Device device);
FABRIC_API void reset_peak_memory(c10::Device device);
FABRIC_API void empty_cache(c10::DeviceType type);
/// The default generators of all devices of this kind.
FABRIC_API void manual_seed(c10::DeviceType type, std::uint64_t seed);
/// A stream from the pool that starts after what the current one has queued; at its end, the other way round.
FABRIC_API Scope side_stream(c10::Device device);

}  // namespace fabric::torch_device
