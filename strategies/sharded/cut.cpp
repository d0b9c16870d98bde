#include "strategies/sharded/cut.h"

#include <algorithm>

namespace fabric::sharded {
namespace {

// Those of the tensor where each of its rows is one block, so that layouts like channels_last stay; else the usual
// ones.
std::vector<std::int64_t> strides_of(const at::Tensor& tensor, std::int64_t row) {
  if (tensor.dim() > 0 && tensor.numel() > 0 && tensor.is_non_overlapping_and_dense() && tensor.stride(0) == row)
    return tensor.strides().vec();
  std::vector<std::int64_t> strides(static_cast<std::size_t>(tensor.dim()));
  std::int64_t step = 1;
  for (auto d = tensor.dim() - 1; d >= 0; --d) {
    strides[static_cast<std::size_t>(d)] = step;
    step *= std::max<std::int64_t>(tensor.size(d), 1);
  }
  return strides;
}

}  // namespace

Cut::Cut(const at::Tensor& whole, int ranks, int rank)
    : shape_(whole.sizes().vec()), ranks_(ranks), rank_(rank), is_split_(whole.dim() > 0 && ranks > 1) {
  if (whole.dim() > 0) {
    rows_ = shape_[0];
    for (std::size_t d = 1; d < shape_.size(); ++d) row_ *= shape_[d];
  }
  chunk_ = (rows_ + ranks - 1) / ranks;
  strides_ = strides_of(whole, row_);
}

std::int64_t Cut::first_row(int rank) const { return is_split_ ? std::min(rank * chunk_, rows_) : 0; }

std::int64_t Cut::rows(int rank) const { return is_split_ ? std::min(chunk_, rows_ - first_row(rank)) : rows_; }

std::vector<std::int64_t> Cut::own_shape() const {
  auto shape = shape_;
  if (is_split_) shape[0] = rows(rank_);
  return shape;
}

std::vector<std::int64_t> Cut::own_offsets() const {
  std::vector<std::int64_t> offsets(shape_.size(), 0);
  if (is_split_) offsets[0] = first_row(rank_);
  return offsets;
}

}  // namespace fabric::sharded
