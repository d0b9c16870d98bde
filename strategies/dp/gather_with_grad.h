#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/plugins/collectives/process_group.h>

namespace fabric {

/// all_gather through which gradients flow: backward sums over the ranks what each of them wants of this rank's input.
std::vector<at::Tensor> gather_with_grad(const at::Tensor& tensor, const ProcessGroup& group);

}  // namespace fabric
