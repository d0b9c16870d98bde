#include "plugins/collectives/communicator/tensor_reduction.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sparse_coo_tensor.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

template <class Integer>
void divide_each(at::Tensor& tensor, int size) {
  auto* data = tensor.mutable_data_ptr<Integer>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) data[i] /= static_cast<Integer>(size);
}

// How many entries each rank's sparse tensor has. Throws MismatchError, on every rank, where the tensors differ in
// anything else.
std::vector<std::int64_t> count_entries(Communicator& communicator, const at::Tensor& tensor, Communicator::Op op) {
  auto form = c10::str(op == Communicator::Op::AVG ? "the mean of " : "the sum of ", tensor.scalar_type(), " ",
                       tensor.sizes(), ", sparse in the first ", tensor.sparse_dim());
  const std::int64_t mine[2] = {tensor._nnz(), static_cast<std::int64_t>(std::hash<std::string>{}(form))};
  auto size = static_cast<std::size_t>(communicator.size());
  std::vector<std::int64_t> all(2 * size), counts;
  communicator.all_gather(mine, all.data(), sizeof mine);
  for (std::size_t rank = 0; rank < size; ++rank) {
    if (all[2 * rank + 1] != all[1])
      throw MismatchError("rank " + std::to_string(communicator.rank()) +
                          ": all_reduce of sparse tensors needs one operation, type and shape on every rank; rank " +
                          std::to_string(rank) + " has another than rank 0. Here it is " + form);
    counts.push_back(all[2 * rank]);
  }
  return counts;
}

// The rows of all ranks, one rank's below the other's.
at::Tensor gather_rows(Communicator& communicator, const at::Tensor& rows, const std::vector<std::int64_t>& counts) {
  auto longest = *std::max_element(counts.begin(), counts.end());
  auto sizes = rows.sizes().vec();
  sizes[0] = longest;
  auto mine = at::zeros(sizes, rows.options());
  mine.narrow(0, 0, rows.size(0)).copy_(rows);
  sizes[0] = longest * communicator.size();
  auto all = at::empty(sizes, rows.options());
  if (all.numel() > 0)
    communicator.all_gather(mine.const_data_ptr(), all.mutable_data_ptr(), static_cast<std::int64_t>(mine.nbytes()));
  std::vector<at::Tensor> parts;
  for (std::size_t rank = 0; rank < counts.size(); ++rank)
    parts.push_back(all.narrow(0, static_cast<std::int64_t>(rank) * longest, counts[rank]));
  return at::cat(parts);
}

}  // namespace

void divide(at::Tensor& tensor, int size) {
  switch (tensor.scalar_type()) {
    case at::kBool:
      return;
    // LibTorch has no division of these.
    case at::kUInt16:
      return divide_each<std::uint16_t>(tensor, size);
    case at::kUInt32:
      return divide_each<std::uint32_t>(tensor, size);
    case at::kUInt64:
      return divide_each<std::uint64_t>(tensor, size);
    default:
      break;
  }
  if (tensor.is_floating_point() || tensor.is_complex())
    tensor.div_(size);
  else
    tensor.div_(size, "trunc");
}

at::Tensor real_of(const at::Tensor& piece, Communicator::Op op) {
  if (!piece.is_complex()) return piece;
  if (op != Communicator::Op::SUM && op != Communicator::Op::AVG)
    throw MisuseError("complex tensors have a sum and a mean, but no other reduction");
  return at::view_as_real(piece);
}

void all_reduce_piece(Communicator& communicator, at::Tensor piece, Communicator::Op op) {
  if (!piece.is_complex()) {
    communicator.all_reduce(piece.mutable_data_ptr(), piece.numel(), piece.scalar_type(), op);
  } else {
    auto real = real_of(piece, op);
    communicator.all_reduce(real.mutable_data_ptr(), real.numel(), real.scalar_type(), op);
  }
  if (op != Communicator::Op::AVG) return;
  at::AutoGradMode no_grad(false);
  divide(piece, communicator.size());
}

void all_reduce_sparse(Communicator& communicator, const at::Tensor& tensor, Communicator::Op op) {
  at::AutoGradMode no_grad(false);
  if (op != Communicator::Op::SUM && op != Communicator::Op::AVG)
    throw MisuseError("sparse tensors have a sum and a mean, but no other reduction");
  auto mine = tensor.coalesce();
  auto counts = count_entries(communicator, mine, op);
  auto indices = gather_rows(communicator, mine.indices().t(), counts);
  auto values = gather_rows(communicator, mine.values(), counts);
  auto sum = at::sparse_coo_tensor(indices.t().contiguous(), values, tensor.sizes()).coalesce();
  if (op == Communicator::Op::AVG) {
    auto entries = sum.values();
    divide(entries, communicator.size());
  }
  tensor.copy_(sum);
}

}  // namespace fabric::collectives
