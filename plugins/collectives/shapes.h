#pragma once

#include <vector>

#include "plugins/collectives/group.h"

namespace fabric::collectives {

/// What a rank has to know of another rank's tensor before its bytes arrive.
struct Shape {
  std::vector<std::int64_t> sizes;
  std::int64_t bytes = 0;
};

/// The shapes of the same number of tensors from every rank: [rank][tensor]. Throws MismatchError on every rank when
/// types or numbers of dimensions differ.
std::vector<std::vector<Shape>> exchange_shapes(Group& group, const char* operation, at::ArrayRef<at::Tensor> tensors);

/// Throws MisuseError unless `tensors` holds one dense tensor per rank, all of one type and device; of one shape with
/// `like` when that is given.
void require_one_per_rank(const Group& group, const char* operation, const std::vector<at::Tensor>& tensors,
                          const at::Tensor* like, bool any_shape = false);

/// Type and shape of a tensor as int64 numbers, to be sent ahead of it. Throws MisuseError for more than 12 dimensions.
at::Tensor shape_record(const char* operation, const at::Tensor& tensor);
/// Throws CollectiveError for a record that no rank of ours wrote: the sender has the check off, say.
void require_record(const char* operation, const at::Tensor& record);
bool same_record(const at::Tensor& record, const at::Tensor& tensor);
std::int64_t bytes_in_record(const at::Tensor& record);
std::string describe_record(const at::Tensor& record);

}  // namespace fabric::collectives
