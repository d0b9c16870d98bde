#pragma once

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tests/support/sim_device/clock.h"
#include "tests/support/sim_device/kernel.h"
#include "tests/support/sim_device/names.h"
#include "tests/support/sim_device/order.h"
#include "tests/support/sim_device/streams.h"

// A simulated accelerator: LibTorch's PrivateUse1 under the name `sim`, with devices, streams and memory of its own.
// Its operators are the CPU's kernels, so training on it gives the CPU's numbers. Every use of memory is checked
// against clocks (order.h): what a GPU would do wrong now and then for lack of a wait is reported here in every run.
//
// It is for test programs alone: a registered PrivateUse1 takes the place of CUDA in LibTorch.
//
// What it does not see: a missing hand-over between threads of the host, which is for the thread sanitizer; a race that
// a read of the host (item()) hides today. A strided view counts as all bytes from its first to its last. It is
// stricter than CUDA where that waits by the way (nonzero, the allocation of new memory).
namespace sim {

/// Makes the devices, once in a process and after a fork; called again it only sees to the fault handler.
void start();

inline at::TensorOptions on(int device = 0) { return at::TensorOptions().device(sim_device(device)); }

/// What was found since the last call.
inline std::vector<std::string> take_findings() { return Order::instance().take_findings(); }

/// What was counted while it lives.
class Count {
 public:
  Count() : before_(Order::instance().counters) {}
  /// Each a time that the host stood still for the device.
  std::uint64_t host_waits() const {
    const auto& now = Order::instance().counters;
    return now.host_reads - before_.host_reads + now.host_waits - before_.host_waits;
  }
  std::uint64_t blocking_copies() const { return Order::instance().counters.blocking_copies - before_.blocking_copies; }
  std::uint64_t kernels() const { return Order::instance().counters.kernels - before_.kernels; }

 private:
  Counters before_;
};

}  // namespace sim
