// Tensors that are parts of larger ones, and tensors that are still in a file. A stored tensor is an ordinary tensor on
// the meta device whose storage owns the way to its content: whatever nested value it is moved through, the content
// stays reachable, and nothing has to be handed along beside it.
#include <fabric/state/sharding.h>

#include <sstream>

#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fabric/base/error.h>

#include "fabric/state/checked_tensor_internal.h"

namespace fabric {
namespace {

using StoredPtr = std::shared_ptr<const StoredTensor>;

void forget_stored(void* context) { delete static_cast<StoredPtr*>(context); }

void require_box(const at::Tensor& source, at::IntArrayRef offsets, const at::Tensor& into) {
  bool fits = source.dim() == into.dim() && static_cast<std::int64_t>(offsets.size()) == into.dim();
  for (std::int64_t d = 0; fits && d < into.dim(); ++d)
    fits = offsets[d] >= 0 && into.size(d) <= source.size(d) - offsets[d];
  if (fits) return;
  std::ostringstream text;
  text << "a box of " << into.sizes() << " at " << offsets << " does not lie in a tensor of " << source.sizes();
  throw MisuseError(text.str());
}

[[noreturn]] void wrong_boxes(const at::Tensor& local, const char* how) {
  std::ostringstream text;
  text << "the boxes that a rank's tensor of " << local.sizes() << " consists of " << how;
  throw CheckpointError(text.str());
}

void require_local_box(const Shard::Box& box, const at::Tensor& local) {
  const auto dims = box.sizes.size();
  // Complex numbers that are stored as pairs of reals have a dimension more, which is not cut.
  if (box.local_offsets.size() != dims || box.offsets.size() != dims || static_cast<std::int64_t>(dims) > local.dim())
    wrong_boxes(local, "have another number of dimensions");
  for (std::size_t d = 0; d < dims; ++d)
    if (box.local_offsets[d] < 0 || box.sizes[d] < 0 || box.sizes[d] > local.sizes()[d] - box.local_offsets[d])
      wrong_boxes(local, "lie outside of it");
}

bool share_elements(const Shard::Box& a, const Shard::Box& b) {
  for (std::size_t d = 0; d < a.sizes.size(); ++d)
    if (a.local_offsets[d] >= b.local_offsets[d] + b.sizes[d] || b.local_offsets[d] >= a.local_offsets[d] + a.sizes[d])
      return false;
  return true;
}

}  // namespace

at::Tensor make_stored_tensor(at::IntArrayRef shape, at::ScalarType type, StoredPtr stored) {
  const auto bytes = at::detail::computeStorageNbytesContiguous(shape, c10::elementSize(type));
  c10::DataPtr content(nullptr, new StoredPtr(std::move(stored)), forget_stored, c10::kMeta);
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(content), /*allocator=*/nullptr,
                       /*resizable=*/false);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::Meta), c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
  return tensor;
}

const StoredTensor* stored_in(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_meta() || !tensor.has_storage()) return nullptr;
  auto* context = tensor.storage().data_ptr().cast_context<StoredPtr>(forget_stored);
  // A view of a part of it is no tensor that a reader made.
  const bool whole = tensor.is_contiguous() && tensor.nbytes() == tensor.storage().nbytes();
  return context && whole ? context->get() : nullptr;
}

void read_box(const at::Tensor& source, at::IntArrayRef offsets, at::Tensor& into) {
  require_box(source, offsets, into);
  at::NoGradGuard no_grad;
  if (auto* stored = stored_in(source)) return stored->read(offsets, into);
  at::Tensor box = source;
  for (std::int64_t d = 0; d < into.dim(); ++d)
    if (box.size(d) != into.size(d)) box = box.narrow(d, offsets[d], into.size(d));
  into.copy_(box);
}

at::Tensor in_memory(const at::Tensor& source) {
  if (!stored_in(source)) return source;
  if (const auto* checked = dynamic_cast<const CheckedTensor*>(stored_in(source)))
    if (at::Tensor there = checked->in_place(); there.defined()) return there;
  at::Tensor whole = at::empty(source.sizes(), source.options().device(c10::kCPU));
  read_box(source, std::vector<std::int64_t>(static_cast<std::size_t>(source.dim()), 0), whole);
  return whole;
}

Value in_memory(Value value) {
  for_each_leaf_tensor(value, [](at::Tensor& tensor, const std::string&) { tensor = in_memory(tensor); });
  return value;
}

std::vector<LocalBox> local_boxes(const at::Tensor& local, const Shard& shard) {
  if (shard.boxes.empty()) return {{local, shard.offsets}};
  at::NoGradGuard no_grad;
  std::vector<LocalBox> out;
  std::int64_t elements = 0;
  for (const auto& box : shard.boxes) {
    require_local_box(box, local);
    for (const auto& other : shard.boxes)
      if (&other < &box && share_elements(other, box)) wrong_boxes(local, "overlap");
    at::Tensor content = local;
    for (std::size_t d = 0; d < box.sizes.size(); ++d)
      content = content.narrow(static_cast<std::int64_t>(d), box.local_offsets[d], box.sizes[d]);
    elements += content.numel();
    out.push_back({std::move(content), box.offsets});
  }
  if (elements != local.numel()) wrong_boxes(local, "leave elements out");
  return out;
}

}  // namespace fabric
