#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/plugins/collectives/process_group.h>

namespace torch::nn {
class Module;
}

namespace fabric::ddp {

/// Throws MismatchError, on every rank, naming the first parameter or buffer that differs between the ranks in name,
/// shape, type or requires_grad.
void check_same_parameters(const torch::nn::Module& module, const ProcessGroup& group);

/// Replaces the tensors' contents, in place, by those of rank `src`; small ones travel together.
void broadcast_tensors(const std::vector<at::Tensor>& tensors, const ProcessGroup& group, int src);

/// A module's parameters and buffers.
std::vector<at::Tensor> all_tensors(const torch::nn::Module& module);

/// Sends a module's buffers in one message per device, again and again.
class BufferSync {
 public:
  BufferSync(const std::vector<at::Tensor>& buffers, const ProcessGroup& group);
  bool empty() const { return parts_.empty(); }
  void broadcast(int src);

 private:
  struct Slot {
    at::Tensor buffer;
    at::Tensor alias;  // the same storage with a version counter of its own
    at::Tensor view;   // its place in the message
  };
  struct Part {
    at::Tensor message;
    std::vector<Slot> slots;
  };
  ProcessGroup group_;
  std::vector<Part> parts_;
};

}  // namespace fabric::ddp
