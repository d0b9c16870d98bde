#include "plugins/checkpoint_io/tensor_bytes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <fabric/base/error.h>
#include <fabric/state/sharding.h>

#include "fabric/torch/pages_internal.h"

namespace fabric::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints hold little-endian numbers");

struct TypeName {
  c10::ScalarType type;
  std::string_view name;
};
constexpr std::array kTypes{
    TypeName{c10::ScalarType::Double, "F64"},
    TypeName{c10::ScalarType::Float, "F32"},
    TypeName{c10::ScalarType::Half, "F16"},
    TypeName{c10::ScalarType::BFloat16, "BF16"},
    TypeName{c10::ScalarType::Long, "I64"},
    TypeName{c10::ScalarType::Int, "I32"},
    TypeName{c10::ScalarType::Short, "I16"},
    TypeName{c10::ScalarType::Char, "I8"},
    TypeName{c10::ScalarType::UInt64, "U64"},
    TypeName{c10::ScalarType::UInt32, "U32"},
    TypeName{c10::ScalarType::UInt16, "U16"},
    TypeName{c10::ScalarType::Byte, "U8"},
    TypeName{c10::ScalarType::Bool, "BOOL"},
    TypeName{c10::ScalarType::Float8_e4m3fn, "F8_E4M3"},
    TypeName{c10::ScalarType::Float8_e5m2, "F8_E5M2"},
    TypeName{c10::ScalarType::Float8_e8m0fnu, "F8_E8M0"},
    TypeName{c10::ScalarType::Float8_e4m3fnuz, "F8_E4M3FNUZ"},
    TypeName{c10::ScalarType::Float8_e5m2fnuz, "F8_E5M2FNUZ"},
    TypeName{c10::ScalarType::ComplexFloat, "C64"},
};
constexpr std::int64_t kPieceBytes = std::int64_t{16} << 20;

// Boxes of whole rows of the outermost dimension whose rows fit a piece, one after another. What lies in dimensions
// before it is one index each. Pairs of reals stay together, as two of them fit.
void for_each_stored_piece(const at::Tensor& tensor, const std::function<void(const void*, std::size_t)>& use) {
  const auto sizes = tensor.sizes();
  const auto dims = sizes.size();
  auto row = static_cast<std::int64_t>(tensor.nbytes());
  std::size_t split = 0;
  for (; split < dims; ++split)
    if ((row /= sizes[split]) <= kPieceBytes) break;
  std::vector<std::int64_t> at(dims, 0), box(sizes.begin(), sizes.end());
  for (std::size_t d = 0; d < split; ++d) box[d] = 1;
  const std::int64_t step = dims == 0 ? 1 : std::max<std::int64_t>(1, kPieceBytes / row);
  const at::Tensor memory =
      pages({dims == 0 ? static_cast<std::int64_t>(tensor.nbytes()) : std::min(step, sizes[split]) * row});
  while (true) {
    if (dims > 0) box[split] = std::min(step, sizes[split] - at[split]);
    at::Tensor piece = at::from_blob(memory.mutable_data_ptr(), box, at::TensorOptions(tensor.scalar_type()));
    read_box(tensor, at, piece);
    use(piece.const_data_ptr(), piece.nbytes());
    if (dims == 0) return;
    at[split] += box[split];
    for (std::size_t d = split; at[d] >= sizes[d]; ++at[d]) {
      if (d == 0) return;
      at[d--] = 0;
    }
  }
}

}  // namespace

std::optional<std::string_view> safetensors_name(c10::ScalarType type) {
  for (const auto& entry : kTypes)
    if (entry.type == type) return entry.name;
  return std::nullopt;
}

std::optional<c10::ScalarType> safetensors_type(std::string_view name) {
  for (const auto& entry : kTypes)
    if (entry.name == name) return entry.type;
  return std::nullopt;
}

bool has_content(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  if (tensor._is_zerotensor() || !tensor.has_storage()) return false;
  const auto& storage = tensor.storage();
  auto end = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size(),
                                              static_cast<std::size_t>(tensor.storage_offset()));
  return storage.data() != nullptr && end <= storage.nbytes();
}

at::Tensor storable(const at::Tensor& tensor, const std::string& path) {
  auto refuse = [&](const std::string& why) {
    throw CheckpointError("the tensor '" + path + "' cannot be saved: " + why);
  };
  if (stored_in(tensor)) return tensor;
  if (tensor.is_meta()) refuse("it is on the meta device and has no data; materialise it first");
  if (tensor.layout() != c10::kStrided) refuse("it is not dense; save its to_dense() instead");
  if (tensor.is_quantized()) refuse("it is quantized; save its int_repr(), scale and zero point instead");
  // A zero that LibTorch made without memory, as some gradients are.
  if (tensor._is_zerotensor()) return at::zeros(tensor.sizes(), tensor.options().requires_grad(false));
  if (!tensor.has_storage()) refuse("it has no storage of its own");
  if (!has_content(tensor)) refuse("its memory was freed or is smaller than its shape; give it content first");
  return tensor.detach().resolve_conj().resolve_neg();
}

std::optional<std::uint64_t> checked_bytes(const std::vector<std::int64_t>& shape, std::uint64_t element_size) {
  constexpr std::uint64_t kLimit = std::uint64_t{1} << 62;
  std::uint64_t bytes = element_size, bound = element_size;  // strides are computed even where a size is zero
  for (std::int64_t size : shape) {
    if (size < 0) return std::nullopt;
    auto factor = static_cast<std::uint64_t>(size);
    if (factor > 1 && bound > kLimit / factor) return std::nullopt;
    bound *= std::max<std::uint64_t>(factor, 1);
    bytes *= factor;
  }
  return bytes;
}

void for_each_piece(const at::Tensor& tensor, const std::function<void(const void*, std::size_t)>& use) {
  if (tensor.numel() == 0) return;
  if (stored_in(tensor)) return for_each_stored_piece(tensor, use);
  if (tensor.is_cpu()) {
    at::Tensor flat = tensor.contiguous();
    use(flat.const_data_ptr(), flat.nbytes());
    return;
  }
  if (!tensor.is_contiguous()) return for_each_piece(tensor.cpu(), use);
  at::Tensor flat = tensor.view(-1);
  const std::int64_t step = std::max<std::int64_t>(1, kPieceBytes / static_cast<std::int64_t>(tensor.element_size()));
  for (std::int64_t start = 0; start < flat.numel(); start += step) {
    at::Tensor piece = flat.narrow(0, start, std::min(step, flat.numel() - start)).cpu();
    use(piece.const_data_ptr(), piece.nbytes());
  }
}

void require_bools(const unsigned char* bytes, std::uint64_t count) {
  unsigned char all = 0;
  for (std::uint64_t i = 0; i < count; ++i) all |= bytes[i];
  if (all > 1) throw CheckpointCorrupt("a tensor of booleans holds bytes other than 0 and 1");
}

at::Tensor tensor_at(void* data, std::uint64_t bytes, const std::vector<std::int64_t>& shape, c10::ScalarType type,
                     const std::shared_ptr<void>& owner) {
  if (bytes == 0) return at::empty(shape, type);
  if (type == c10::ScalarType::Bool) require_bools(static_cast<const unsigned char*>(data), bytes);
  if (reinterpret_cast<std::uintptr_t>(data) % c10::elementSize(type) != 0) {
    at::Tensor copy = at::empty(shape, type);
    std::memcpy(copy.mutable_data_ptr(), data, bytes);
    return copy;
  }
  return at::from_blob(
      data, shape, [owner](void*) {}, at::TensorOptions(type));
}

}  // namespace fabric::checkpoint
