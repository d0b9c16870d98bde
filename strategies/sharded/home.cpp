#include "strategies/sharded/home.h"

#include <utility>

#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/InferenceMode.h>

namespace fabric::sharded {
namespace {

// The context of the storage's pointer.
struct NamePlate {
  std::atomic<Unit*> owner;
  at::Tensor memory = {};
  std::atomic<int> references = 1;
};

void release_plate(void* context) {
  auto* plate = static_cast<NamePlate*>(context);
  if (plate->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete plate;
}

NamePlate* plate_of(const c10::Storage& storage) { return storage.data_ptr().cast_context<NamePlate>(release_plate); }

}  // namespace

Home::Home(Unit* owner, c10::Device device)
    : storage_(c10::Storage::use_byte_size_t(), 0,
               c10::DataPtr(nullptr, new NamePlate{.owner = owner}, release_plate, device), /*allocator=*/nullptr,
               /*resizable=*/false) {}

Home::~Home() {
  if (storage_) plate_of(storage_)->owner.store(nullptr, std::memory_order_release);
}

void Home::fill(at::Tensor memory) {
  NamePlate* plate = plate_of(storage_);
  auto* impl = storage_.unsafeGetStorageImpl();
  plate->references.fetch_add(1, std::memory_order_relaxed);
  void* data = memory.defined() ? memory.mutable_data_ptr() : nullptr;
  impl->set_data_ptr_noswap(c10::DataPtr(data, plate, release_plate, storage_.device()));
  impl->set_nbytes(memory.defined() ? static_cast<std::int64_t>(memory.nbytes()) : 0);
  plate->memory = std::move(memory);
}

at::Tensor Home::empty() {
  at::Tensor memory = plate_of(storage_)->memory;
  fill({});
  return memory;
}

at::Tensor Home::tensor(at::ScalarType type, at::IntArrayRef sizes, at::IntArrayRef strides,
                        std::int64_t offset) const {
  c10::InferenceMode outside(false);
  auto like = at::empty({0}, at::TensorOptions(storage_.device()).dtype(type));
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage_), like.key_set(), like.dtype());
  tensor.unsafeGetTensorImpl()->set_storage_offset(offset);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return tensor;
}

at::Tensor Home::flat(at::ScalarType type, std::int64_t numel, std::int64_t offset) const {
  return tensor(type, {numel}, {1}, offset);
}

Residence residence_of(const at::Tensor& tensor) {
  if (!tensor.has_storage()) return {};
  NamePlate* plate = plate_of(tensor.storage());
  if (!plate) return {};
  return {true, plate->owner.load(std::memory_order_acquire)};
}

}  // namespace fabric::sharded
