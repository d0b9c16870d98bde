// All operators of the device but a few (operators.cpp): the CPU's kernels, by one function that takes any operator.
#include "tests/support/sim_device/cpu_kernels.h"

#include <optional>

#include <ATen/core/List.h>
#include <torch/library.h>

#include "tests/support/sim_device/generators.h"
#include "tests/support/sim_device/kernel.h"
#include "tests/support/sim_device/operator_info.h"
#include "tests/support/sim_device/streams.h"

namespace sim {
namespace {

using c10::IValue;
using OptionalTensors = c10::List<std::optional<at::Tensor>>;

IValue on_host(Kernel& kernel, const IValue& value, bool writes) {
  if (value.isTensor()) return kernel.on_host(value.toTensor(), writes);
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(kernel.on_host(tensor, writes));
    return list;
  }
  if (value.isOptionalTensorList()) {
    OptionalTensors list;
    for (const auto& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional(kernel.on_host(*tensor, writes)) : tensor);
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == c10::DeviceType::PrivateUse1) {
    kernel.set_device(value.toDevice().has_index() ? value.toDevice().index() : current_device());
    return c10::Device(c10::kCPU);
  }
  return value;
}

IValue on_device(Kernel& kernel, const IValue& value) {
  if (value.isTensor()) return kernel.on_device(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(kernel.on_device(tensor));
  return list;
}

void choose_generator(const Kernel& kernel, const OperatorInfo& info, IValue* arguments) {
  if (info.generator < 0) return;
  auto& argument = arguments[info.generator];
  argument = inner_generator(argument.isNone() ? default_generator(kernel.device()) : argument.toGenerator());
}

// What the host waits for it knows afterwards.
void count_host_reads(const Kernel& kernel, const OperatorInfo& info) {
  if (!kernel.has_device_tensors() || (!info.gives_number && !info.waits_for_shape)) return;
  auto& order = Order::instance();
  Lock lock(order.mutex());
  order.count_wait(order.counters.host_reads);
  if (info.gives_number) order.host_learns(VectorClock(order.clock(kernel.access().place)));
}

}  // namespace

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& info = OperatorInfo::of(op);
  std::size_t count = info.writes.size(), base = stack->size() - count;
  c10::SmallVector<IValue, 8> given(stack->begin() + static_cast<std::ptrdiff_t>(base), stack->end());
  Kernel kernel(info.name.c_str());
  for (std::size_t i = 0; i < count; ++i) (*stack)[base + i] = on_host(kernel, given[i], info.writes[i]);
  TORCH_CHECK(!kernel.has_host_tensors() || !kernel.has_device_tensors() || info.takes_host_tensors,
              "Expected all tensors to be on the same device, but found at least two devices, sim:", kernel.device(),
              " and cpu! (in ", info.name, ")");
  choose_generator(kernel, info, stack->data() + base);
  std::optional<LentGenerator> lent;
  if (info.draws_from_default) lent.emplace(kernel.device());
  if (info.is_view)
    kernel.begin_without_access();
  else
    kernel.begin();
  kernel.run([&] { op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack); });
  std::size_t first = stack->size() - info.result_is_argument.size();
  for (std::size_t i = 0; i < info.result_is_argument.size(); ++i) {
    auto& result = (*stack)[first + i];
    int same = info.result_is_argument[i];
    result = same >= 0 ? given[static_cast<std::size_t>(same)] : on_device(kernel, result);
  }
  kernel.end();
  count_host_reads(kernel, info);
}

namespace {

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { run_on_host(op, stack); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace

int prefer_cpu_kernels() {
  static auto* library =
      new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  int count = 0;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || name.getNamespace() != "aten" || !op->hasSchema()) continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
        op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1))
      continue;
    library->impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
    ++count;
  }
  return count;
}

}  // namespace sim
