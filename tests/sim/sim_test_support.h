#pragma once

#include <string>
#include <vector>

#include <c10/core/Event.h>
#include <torch/torch.h>

#include "tests/support/catch.h"
#include "tests/support/sim_device/device.h"

namespace sim {

/// Makes the devices and forgets what was found before; at its end nothing may have been found.
class CleanRun {
 public:
  CleanRun() {
    start();
    take_findings();
  }
  ~CleanRun() {
    for (const auto& finding : take_findings()) FAIL_CHECK(finding);
  }
};

inline c10::Stream current_stream(int device = 0) {
  return c10::impl::getDeviceGuardImpl(c10::DeviceType::PrivateUse1)->getStream(sim_device(device));
}

/// An event of the device.
inline c10::Event make_event() { return c10::Event(c10::DeviceType::PrivateUse1); }

/// `later` waits for what is queued on `earlier` now.
inline void order_after(const c10::Stream& later, const c10::Stream& earlier) {
  auto event = make_event();
  event.record(earlier);
  event.block(later);
}

}  // namespace sim
