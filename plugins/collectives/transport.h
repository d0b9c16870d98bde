#pragma once

#include <memory>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/plugins/collectives/backend.h>

#include "plugins/collectives/identity.h"

namespace fabric::collectives {

/// What carries the tensors of a group.
class Transport {
 public:
  std::shared_ptr<CollectiveBackend> cpu;        // carries CPU tensors and the checks; none on ranks outside
  std::shared_ptr<CollectiveBackend> on_device;  // carries tensors on the group's device; none: they go through the CPU
  c10::intrusive_ptr<c10d::Store> store;         // keys of this group; none where the backend met without
  bool owned = true;                             // else the backends belong to whoever made the LibTorch group
  int subgroups = 0;                             // made so far

  /// The backend of a tensor on `device`.
  CollectiveBackend& of(c10::Device device) const { return !device.is_cpu() && on_device ? *on_device : *cpu; }
  c10d::Backend& carrier(const at::Tensor& tensor) const { return *of(tensor.device()).c10d(); }
  /// Whether the tensor has to be copied to the CPU to travel.
  bool needs_staging(const at::Tensor& tensor) const { return !tensor.is_cpu() && !on_device; }

  /// LibTorch's object over the backends; made when first asked for.
  const c10::intrusive_ptr<c10d::ProcessGroup>& torch_group(const Identity& id);
  /// Takes over LibTorch's object that the caller made. Throws MisuseError where nothing in it carries CPU tensors.
  void wrap(c10::intrusive_ptr<c10d::ProcessGroup> torch_group, Identity& id);
  /// Never waits for a peer.
  void close() noexcept;

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> torch_group_;
};

}  // namespace fabric::collectives
