#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "plugins/collectives/communicator/communicator.h"

namespace fabric::collectives {

/// Divides a sum of `size` ranks in place; integers truncate towards zero, logical values stay.
void divide(at::Tensor& tensor, int size);
/// What is reduced of a tensor in one piece: complex numbers as pairs of real ones. Throws MisuseError for a minimum,
/// maximum or product of them.
at::Tensor real_of(const at::Tensor& piece, Communicator::Op op);
/// Reduces a tensor that lies in one piece, in place.
void all_reduce_piece(Communicator& communicator, at::Tensor piece, Communicator::Op op);
/// Sum or mean of sparse tensors (COO), with different numbers of entries on the ranks. As Gloo does it: every rank
/// gets the entries of all and adds those of one place.
void all_reduce_sparse(Communicator& communicator, const at::Tensor& tensor, Communicator::Op op);

}  // namespace fabric::collectives
