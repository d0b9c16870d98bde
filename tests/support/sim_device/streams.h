#pragma once

#include <c10/core/Stream.h>

#include "tests/support/sim_device/clock.h"

namespace sim {

inline c10::Device sim_device(int index) {
  return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index)};
}
inline c10::Stream make_stream(int device, int stream) {
  return c10::Stream(c10::Stream::UNSAFE, sim_device(device), stream);
}
inline Place place_of(const c10::Stream& stream) {
  return place_of(stream.device_index(), static_cast<int>(stream.id()));
}

/// This thread's.
int current_device();
void set_current_device(int device);
/// The current stream of the device.
Place current_place(int device);

}  // namespace sim
