#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace fabric::sharded {

/// How a tensor is cut into one piece per rank, on its first dimension. All pieces take the room of the largest, so
/// that one collective moves them: the last ranks have fewer rows in theirs, or none.
class Cut {
 public:
  /// One rank, or a tensor without dimensions: it is not cut.
  Cut(const at::Tensor& whole, int ranks, int rank);

  bool is_split() const { return is_split_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  const std::vector<std::int64_t>& strides() const { return strides_; }
  std::int64_t numel() const { return rows_ * row_; }
  /// Elements that one rank's piece takes, and those of all pieces one after another, of which the first `numel()` are
  /// the tensor.
  std::int64_t piece() const { return is_split_ ? chunk_ * row_ : numel(); }
  std::int64_t padded() const { return is_split_ ? piece() * ranks_ : numel(); }
  bool is_even() const { return padded() == numel(); }
  int ranks() const { return is_split_ ? ranks_ : 1; }
  /// Of a rank's piece, without the padding.
  std::int64_t first_row(int rank) const;
  std::int64_t rows(int rank) const;
  std::int64_t elements(int rank) const { return rows(rank) * row_; }
  std::int64_t own_elements() const { return elements(rank_); }
  std::vector<std::int64_t> own_shape() const;
  /// Of this rank's piece in the whole tensor.
  std::vector<std::int64_t> own_offsets() const;

 private:
  std::vector<std::int64_t> shape_, strides_;
  std::int64_t rows_ = 1, row_ = 1, chunk_ = 1;
  int ranks_, rank_;
  bool is_split_;
};

}  // namespace fabric::sharded
