#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace fabric::checkpoint {

/// A tensor ready to be stored: strided, real, without gradient history.
struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// The name safetensors gives a type ("F32"), or none.
std::optional<std::string_view> safetensors_name(c10::ScalarType type);
std::optional<c10::ScalarType> safetensors_type(std::string_view name);

/// False where there is no memory behind the elements: it was freed, or LibTorch keeps a zero without any.
bool has_content(const at::Tensor& tensor);

/// Detached, with pending conjugation and negation done; a stored tensor (fabric/state/sharding.h) as it is. Throws
/// CheckpointError for tensors that no file can hold (sparse, quantized, without memory), naming `path` and what to do.
at::Tensor storable(const at::Tensor& tensor, const std::string& path);

/// Number of bytes of a contiguous tensor of this shape; none when a size is negative or the number overflows.
std::optional<std::uint64_t> checked_bytes(const std::vector<std::int64_t>& shape, std::uint64_t element_size);

/// Hands out the tensor's elements in row-major order: in one piece without a copy where it lies contiguous on CPU, in
/// pieces of limited size where it must come from a device or is still in a file.
void for_each_piece(const at::Tensor& tensor, const std::function<void(const void*, std::size_t)>& use);

/// Throws CheckpointCorrupt for a byte other than 0 and 1, which a tensor of booleans must not hold.
void require_bools(const unsigned char* bytes, std::uint64_t count);

/// A tensor over `bytes` bytes at `data`, which `owner` keeps alive; a copy where the address does not suit the type.
at::Tensor tensor_at(void* data, std::uint64_t bytes, const std::vector<std::int64_t>& shape, c10::ScalarType type,
                     const std::shared_ptr<void>& owner);

}  // namespace fabric::checkpoint
