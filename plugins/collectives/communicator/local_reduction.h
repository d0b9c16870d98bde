#pragma once

#include <cmath>
#include <cstdint>

#include <c10/core/ScalarType.h>
#include <c10/macros/Macros.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include <fabric/export.h>

// Reductions of memory, without any communication. AVG adds; the caller divides. Logical values are 0 or 1: their sum
// is "or", their product and mean "and". Integers wrap. Floats of 16 bits and less are added in float. A NaN wins over
// any number in minimum and maximum, as in LibTorch's own.
namespace fabric::collectives {

using ReduceType = c10d::ReduceOp::RedOpType;

/// Whether there is such a reduction: sums, products, minima and maxima of all real numbers and bool, bitwise ones of
/// integers and bool.
FABRIC_API bool can_reduce(at::ScalarType type, ReduceType op);
/// Throws MisuseError unless can_reduce.
FABRIC_API void require_reducible(at::ScalarType type, ReduceType op);

/// Reduces `count` items of each of `ranks` inputs, in the order of the ranks, so that the result depends on neither
/// time nor place. The inputs lie `stride` bytes apart. Floats of 16 bits are rounded once, at the end.
FABRIC_API void reduce_in_rank_order(const void* first, std::size_t stride, int ranks, void* output, std::int64_t count,
                                     at::ScalarType type, ReduceType op);

/// The same of inputs that lie anywhere, to `places` outputs, each of which may be one of the inputs. What this and the
/// other form give is the same bit by bit.
FABRIC_API void reduce_in_rank_order(const void* const* inputs, int ranks, void* const* outputs, int places,
                                     std::int64_t count, at::ScalarType type, ReduceType op);

/// output = output op input. Types and operations as above.
FABRIC_API void reduce_into(const void* input, void* output, std::int64_t count, at::ScalarType type, ReduceType op);

}  // namespace fabric::collectives
