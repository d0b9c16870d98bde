#include "plugins/checkpoint_io/async/host_snapshot.h"

#include <algorithm>

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/strides.h>

#include "plugins/checkpoint_io/async/stream_copy.h"
#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric {
namespace {

constexpr std::size_t kWorthThreads = std::size_t{4} << 20;

// What a plain copy of the bytes reproduces.
bool is_plain(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.is_non_overlapping_and_dense() && !tensor.is_conj() && !tensor.is_neg();
}

bool can_be_copied(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && !tensor.is_quantized() && !tensor.is_meta() &&
         checkpoint::has_content(tensor);
}

void wait_for(c10::Device device) {
  c10::impl::VirtualGuardImpl guard(device.type());
  guard.getStream(device).synchronize();
}

// As for_each_leaf_tensor, whose paths cost as much as the copy of a small tensor.
template <class Change>
void for_each_tensor_in(Value& value, const Change& change) {
  if (value.is<at::Tensor>()) {
    change(value.as<at::Tensor>());
  } else if (value.is_list()) {
    for (auto& item : value.as_list()) for_each_tensor_in(item, change);
  } else if (value.is_map()) {
    for (auto& [key, item] : value.as_map()) for_each_tensor_in(item, change);
  }
}

}  // namespace

at::Tensor& HostSnapshot::buffer_for(const at::Tensor& tensor) {
  if (used_ == buffers_.size()) buffers_.emplace_back();
  at::Tensor& buffer = buffers_[used_++];
  bool pinned = tensor.device().type() == at::getAccelerator();
  bool dense = tensor.is_non_overlapping_and_dense();
  bool fits = buffer.defined() && buffer.scalar_type() == tensor.scalar_type() && buffer.sizes() == tensor.sizes() &&
              (dense ? buffer.strides() == tensor.strides() : buffer.is_contiguous()) &&
              (!pinned || buffer.is_pinned());
  if (fits) return buffer;
  auto options = at::TensorOptions(tensor.scalar_type()).pinned_memory(pinned);
  buffer = at::Tensor();  // its memory first, so that there is never twice as much
  buffer = dense ? at::empty_strided(tensor.sizes(), tensor.strides(), options)
                 : at::empty_strided(tensor.sizes(), c10::contiguous_strides(tensor.sizes()), options);
  return buffer;
}

void HostSnapshot::copy(at::Tensor& tensor, const std::unordered_set<const void*>& unchanging) {
  if (!can_be_copied(tensor)) return;
  at::Tensor from = tensor.requires_grad() ? tensor.detach() : tensor;
  tensor = buffer_for(from);
  // Copies from a device come from its stream at once, and inference tensors count no changes.
  if (!unchanging.empty() && is_plain(from) && !from.is_inference() &&
      unchanging.contains(from.storage().unsafeGetStorageImpl()))
    rest_.push_back({{from, tensor}, from._version()});
  else
    copies_.push_back({std::move(from), tensor});
}

void HostSnapshot::copy_all() const {
  std::vector<const Copy*> plain;
  std::vector<c10::Device> devices;
  std::size_t bytes = 0;
  for (const auto& copy : copies_) {
    if (is_plain(copy.from)) {
      plain.push_back(&copy);
      bytes += copy.from.nbytes();
    } else {
      auto device = copy.from.device();
      if (!device.is_cpu() && std::find(devices.begin(), devices.end(), device) == devices.end())
        devices.push_back(device);
      at::Tensor to = copy.to;
      // LibTorch would conjugate or negate on the host what has not arrived there yet.
      to.copy_(copy.from.resolve_conj().resolve_neg(), /*non_blocking=*/true);
    }
  }
  // Without LibTorch's copy_, whose dispatch costs more than the copy of a small tensor.
  auto copy_some = [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) {
      const Copy& copy = *plain[static_cast<std::size_t>(i)];
      if (copy.from.nbytes() > 0)
        stream_copy(copy.to.mutable_data_ptr(), copy.from.const_data_ptr(), copy.from.nbytes());
    }
  };
  auto count = static_cast<std::int64_t>(plain.size());
  if (bytes < kWorthThreads)
    copy_some(0, count);
  else
    at::parallel_for(0, count, 1, copy_some);
  for (auto device : devices) wait_for(device);
}

std::size_t HostSnapshot::take_rest() noexcept {
  std::size_t changed = 0;
  for (const auto& copy : rest_) {
    if (copy.from.nbytes() > 0) stream_copy(copy.to.mutable_data_ptr(), copy.from.const_data_ptr(), copy.from.nbytes());
  }
  for (const auto& copy : rest_) changed += copy.from._version() != copy.version;
  rest_.clear();
  return changed;
}

Value HostSnapshot::take(const Value& value, const std::unordered_set<const void*>& settled,
                         const std::unordered_set<const void*>& unchanging) {
  used_ = 0;
  copies_.clear();
  rest_.clear();
  Value out = value;
  for_each_tensor_in(out, [&](at::Tensor& tensor) {
    if (!settled.contains(tensor.unsafeGetTensorImpl())) copy(tensor, unchanging);
  });
  copy_all();
  copies_.clear();
  buffers_.resize(used_);
  return out;
}

std::size_t HostSnapshot::bytes() const {
  std::size_t sum = 0;
  for (const auto& buffer : buffers_) sum += buffer.nbytes();
  return sum;
}

}  // namespace fabric
