#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace sim {

/// Runs the CPU's kernel of an operator on device memory.
void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack);
/// Every operator for which the CPU has a kernel takes that one on the device, by its name, also where LibTorch could
/// put it together from others: only then are the numbers those of the CPU, bit by bit. Returns how many there were.
int prefer_cpu_kernels();

}  // namespace sim
