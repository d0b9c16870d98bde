#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace fabric::checkpoint {

/// Two boxes of one tensor, given by their content and where they begin: copies what they have in common, if anything.
void copy_common(const at::Tensor& from, at::IntArrayRef from_offsets, at::Tensor& into, at::IntArrayRef into_offsets);

}  // namespace fabric::checkpoint
