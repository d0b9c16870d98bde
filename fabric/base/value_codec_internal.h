#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <c10/core/Device.h>

#include <fabric/base/value.h>

namespace fabric::collectives {

/// The bytes of a tensor as one dimension: operations that only move data know no types then. Shares the memory of a
/// contiguous tensor, copies others.
at::Tensor bytes_of(const at::Tensor& tensor);

/// A nested value as bytes, to travel between ranks of one job (same library, same byte order). The bytes of tensors
/// larger than `inline_limit` are left out and returned in `large`, in order: contiguous, on their own devices.
std::vector<std::uint8_t> encode(const Value& value, std::int64_t inline_limit, std::vector<at::Tensor>& large);

/// The value out of these bytes. Tensors that came from a CUDA device are put on `device` when that is one. Large
/// tensors come back allocated and unfilled in `large`, sharing memory with the value's, in the order of encode().
/// Throws CollectiveError when the bytes are damaged.
Value decode(const std::uint8_t* bytes, std::size_t size, c10::Device device, std::vector<at::Tensor>& large);

}  // namespace fabric::collectives
