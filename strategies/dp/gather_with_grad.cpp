#include "strategies/dp/gather_with_grad.h"

#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

namespace fabric {
namespace {

// Carries the group from forward to backward inside autograd's saved data.
struct GroupHolder : torch::CustomClassHolder {
  explicit GroupHolder(ProcessGroup group) : group(std::move(group)) {}
  ProcessGroup group;
};

struct GatherWithGrad : torch::autograd::Function<GatherWithGrad> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& tensor,
                                                const ProcessGroup* group) {
    context->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<GroupHolder>(*group));
    return group->all_gather(tensor, /*uneven=*/true);
  }

  // Outputs that were not used arrive as zeros, so that every rank makes the same calls.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto holder = c10::static_intrusive_pointer_cast<GroupHolder>(context->saved_data["group"].toCapsule());
    at::Tensor own;
    for (int rank = 0; rank < holder->group.size(); ++rank) {
      auto sum = holder->group.all_reduce(gradients[rank].contiguous(), ReduceOp::sum);
      if (rank == holder->group.rank()) own = sum;
    }
    return {own, at::Tensor()};
  }
};

}  // namespace

std::vector<at::Tensor> gather_with_grad(const at::Tensor& tensor, const ProcessGroup& group) {
  return GatherWithGrad::apply(tensor, &group);
}

}  // namespace fabric
