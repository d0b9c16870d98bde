// Operators that the CPU's kernels cannot do: those that allocate, copy between memories, or that LibTorch sends to
// other names on a device of this kind.
#include <array>
#include <tuple>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/transformers/attention.h>
#include <torch/library.h>

#include "tests/support/sim_device/cpu_kernels.h"
#include "tests/support/sim_device/kernel.h"
#include "tests/support/sim_device/pinned.h"
#include "tests/support/sim_device/streams.h"

namespace sim {
namespace {

using at::Tensor;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

std::optional<c10::Device> with_index(std::optional<c10::Device> device) {
  return device && device->has_index() ? device : std::nullopt;
}

Tensor empty(c10::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(with_index(device));
  return at::detail::empty_generic(sizes, &device_allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(with_index(device));
  return at::detail::empty_strided_generic(sizes, strides, &device_allocator(), kKeys, c10::dtype_or_default(dtype));
}

// --- copies

// Between devices: the source's stream does it, after what both streams have queued, and both go on after it. So does
// LibTorch on CUDA.
Tensor copy_between(const Tensor& from, const Tensor& to) {
  auto& order = Order::instance();
  Place source = current_place(from.device().index()), target = current_place(to.device().index());
  Kernel reading("aten::copy_"), writing("aten::copy_");
  Tensor read = reading.on_host(from, false), written = writing.on_host(to, true);
  {
    Lock lock(order.mutex());
    order.join(source, order.event_clock(target));
  }
  reading.begin(source);
  writing.begin(source);
  writing.run([&] { written.copy_(read); });
  Lock lock(order.mutex());
  order.join(target, VectorClock(order.clock(source)));
  return to;
}

Tensor copy_within(const Tensor& from, const Tensor& to) {
  Kernel kernel("aten::copy_");
  Tensor read = kernel.on_host(from, false), written = kernel.on_host(to, true);
  kernel.begin();
  kernel.run([&] { written.copy_(read); });
  return to;
}

// Between device and host. The host waits, unless it asked not to and the memory is pinned.
Tensor copy_with_host(const Tensor& from, const Tensor& to, bool non_blocking) {
  auto& order = Order::instance();
  bool into_host = is_sim(from);
  const Tensor& host = into_host ? to : from;
  Kernel kernel("aten::copy_");
  Tensor on_device = kernel.on_host(into_host ? from : to, !into_host);
  kernel.begin();
  Tensor on_host;
  {
    Lock lock(order.mutex());
    on_host = for_copy(host, into_host, kernel.access());
  }
  kernel.run([&] { into_host ? on_host.copy_(on_device) : on_device.copy_(on_host); });
  Lock lock(order.mutex());
  if (non_blocking && is_pinned(host.storage().data())) {
    begin_flight(host, into_host, kernel.access());
  } else {
    order.count_wait(into_host ? order.counters.host_reads : order.counters.blocking_copies);
    order.host_learns(VectorClock(order.clock(kernel.access().place)));
  }
  return to;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  if (!is_sim(from) || !is_sim(to)) return copy_with_host(from, to, non_blocking);
  return from.device() == to.device() ? copy_within(from, to) : copy_between(from, to);
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& tensor) {
  Kernel kernel("aten::item");
  Tensor on_host = kernel.on_host(tensor, false);
  kernel.begin();
  at::Scalar number;
  kernel.run([&] { number = at::_local_scalar_dense(on_host); });
  auto& order = Order::instance();
  Lock lock(order.mutex());
  order.count_wait(order.counters.host_reads);
  order.host_learns(VectorClock(order.clock(kernel.access().place)));
  return number;
}

// --- storages

Tensor& set_storage_offset(Tensor& tensor, at::Storage storage, std::int64_t offset, c10::IntArrayRef sizes,
                           c10::IntArrayRef strides) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  if (strides.data()) {
    impl->set_sizes_and_strides(sizes, strides, offset);
  } else {
    impl->set_sizes_contiguous(sizes);
    impl->set_storage_offset(offset);
  }
  return tensor;
}

Tensor& set_storage(Tensor& tensor, at::Storage storage) {
  auto items = static_cast<std::int64_t>(storage.nbytes() / tensor.itemsize());
  return set_storage_offset(tensor, std::move(storage), 0, {items}, {});
}

Tensor& set_tensor(Tensor& tensor, const Tensor& source) {
  return set_storage_offset(tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& set_nothing(Tensor& tensor) {
  c10::Storage none(c10::Storage::use_byte_size_t(), 0, &device_allocator(), /*resizable=*/true);
  return set_storage_offset(tensor, std::move(none), 0, {0}, {});
}

void record_stream(Tensor& tensor, c10::Stream stream) {
  device_allocator().recordStream(tensor.storage().data_ptr(), stream);
}

// --- convolutions, which have names of their own on devices of this kind

void convolution(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  run_on_host(op, stack);
}

// The name lacks an argument that the CPU's has: the sizes of the bias.
void convolution_backward(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_backward", "");
  constexpr std::ptrdiff_t kArguments = 10, kBiasSizes = 3, kMask = 9;
  auto first = stack->end() - kArguments;
  bool has_bias = first[kMask].toBoolList().get(2);
  std::int64_t channels = first[0].toTensor().size(1);
  c10::IValue sizes = has_bias ? c10::IValue(std::vector<std::int64_t>{channels}) : c10::IValue();
  stack->insert(first + kBiasSizes, std::move(sizes));
  run_on_host(op, stack);
}

// --- attention: the CPU's flash kernel under the name that devices of this kind are given

constexpr std::int64_t kMath = 0, kOverrideable = 4;

std::int64_t choose_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              const std::optional<Tensor>& mask, double dropout, bool is_causal,
                              std::optional<double> scale, bool enable_gqa) {
  if (mask && mask->requires_grad()) return kMath;
  // What the CPU would choose for the same tensors; only shapes and types are looked at.
  Kernel kernel("aten::_fused_sdp_choice");
  Tensor q = kernel.on_host(query, false), k = kernel.on_host(key, false), v = kernel.on_host(value, false);
  std::optional<Tensor> m = mask ? std::optional(kernel.on_host(*mask, false)) : std::nullopt;
  std::int64_t choice = kMath;
  kernel.begin_without_access();
  kernel.run([&] { choice = at::_fused_sdp_choice(q, k, v, m, dropout, is_causal, scale, enable_gqa); });
  return choice == kMath ? kMath : kOverrideable;
}

using Attention = std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

Attention attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                    double dropout, bool is_causal, bool, std::optional<double> scale) {
  auto [output, logsumexp] =
      at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, is_causal, mask, scale);
  auto unused = at::empty({}, query.options().dtype(at::kLong));
  return {output, logsumexp, Tensor(), Tensor(), query.size(2), key.size(2), unused, unused.clone(), Tensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& gradient, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
    std::array<bool, 4>, const Tensor& output, const Tensor& logsumexp, const Tensor&, const Tensor&, c10::SymInt,
    c10::SymInt, double dropout, bool is_causal, const Tensor&, const Tensor&, std::optional<double> scale) {
  auto given = mask.defined() ? std::optional(mask) : std::nullopt;
  auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      gradient, query, key, value, output, logsumexp, dropout, is_causal, given, scale);
  return {q, k, v, Tensor()};
}

// --- cells of recurrent networks, which the CPU has in parts only; above autograd, so that they need no backward

Tensor plus(const Tensor& tensor, const std::optional<Tensor>& bias) {
  return bias && bias->defined() ? tensor + *bias : tensor;
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& input, const Tensor& hidden, const Tensor& cell,
                                             const std::optional<Tensor>& input_bias,
                                             const std::optional<Tensor>& hidden_bias) {
  auto gates = (plus(input, input_bias) + plus(hidden, hidden_bias)).unsafe_chunk(4, 1);
  auto next = gates[1].sigmoid() * cell + gates[0].sigmoid() * gates[2].tanh();
  return {gates[3].sigmoid() * next.tanh(), next, Tensor()};
}

std::tuple<Tensor, Tensor> gru_cell(const Tensor& input, const Tensor& hidden, const Tensor& state,
                                    const std::optional<Tensor>& input_bias, const std::optional<Tensor>& hidden_bias) {
  auto from_input = plus(input, input_bias).unsafe_chunk(3, 1);
  auto from_hidden = plus(hidden, hidden_bias).unsafe_chunk(3, 1);
  auto reset = (from_hidden[0] + from_input[0]).sigmoid(), update = (from_hidden[1] + from_input[1]).sigmoid();
  auto fresh = (from_input[2] + from_hidden[2] * reset).tanh();
  return {(state - fresh) * update + fresh, Tensor()};
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) {
  library.impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
  library.impl("_thnn_fused_gru_cell", TORCH_FN(gru_cell));
}

// Copies do by themselves what a tensor puts off; LibTorch's way for other operators would copy first, and so for ever.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) { library.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, library) { library.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  library.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  // Module::to puts new tensors into the old ones.
  library.impl("_has_compatible_shallow_copy_type", [](const Tensor&, const Tensor&) { return true; });
  library.impl("record_stream", TORCH_FN(record_stream));
  library.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_offset));
  library.impl("set_.source_Storage", TORCH_FN(set_storage));
  library.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  library.impl("set_", TORCH_FN(set_nothing));
  library.impl("_scaled_dot_product_fused_attention_overrideable", TORCH_FN(attention));
  library.impl("_scaled_dot_product_fused_attention_overrideable_backward", TORCH_FN(attention_backward));
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
}

}  // namespace
}  // namespace sim

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &sim::choose_attention)
}  // namespace at::native
