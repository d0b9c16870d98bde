#pragma once

#include <memory>
#include <string>
#include <vector>

#include <fabric/strategies/strategy.h>

namespace fabric {

/// One process, several devices: each forward pass splits its batch over copies of the module, made anew every time,
/// and puts the outputs together again. Gradients add up in the original's parameters, so that the loss of the whole
/// batch trains as on one device. `ddp` is faster; this one needs no second process.
///
/// Tensors among the arguments are split along their first dimension when it is as long as that of the first tensor
/// that has one; others go to every device as they are. Outputs are joined along the first dimension, scalars become a
/// vector of one per device. Modules must be able to clone themselves (derive from torch::nn::Cloneable).
/// @experimental
class FABRIC_API DataParallelStrategy : public Strategy {
 public:
  explicit DataParallelStrategy(std::vector<c10::Device> devices = {});

  std::string name() const override { return "dp"; }
  bool requires_launch() const override { return false; }
  std::string reason_against(const fabric::Accelerator& accelerator) const override;
  c10::Device root_device() const override { return devices_.front(); }
  std::vector<c10::Device> own_devices() const override { return are_own_ ? devices_ : std::vector<c10::Device>{}; }
  void set_devices(std::vector<c10::Device> devices) override;
  const std::vector<c10::Device>& devices() const { return devices_; }
  const RankInfo& ranks() const override { return ranks_; }
  const ProcessGroup& process_group() const override { return group_; }

  std::unique_ptr<StrategyModule> setup_module(std::shared_ptr<torch::nn::Module> module,
                                               const SetupOptions& options = {}) override;
  /// Batches stay where they are; the forward pass spreads them, or moves them to the only device.
  at::Tensor batch_to_device(const at::Tensor& tensor, std::optional<c10::Device> device = std::nullopt) override;
  /// The mean over the tensor's own elements (one value per device) for `mean`, the tensor itself otherwise.
  at::Tensor all_reduce(const at::Tensor& tensor, ReduceOp op, const ProcessGroup& group = {}) override;
  void all_reduce_(at::Tensor& tensor, ReduceOp op, const ProcessGroup& group = {}) override;

 private:
  std::vector<c10::Device> devices_;
  bool are_own_;
  RankInfo ranks_;
  ProcessGroup group_ = ProcessGroup::single();
};

}  // namespace fabric
