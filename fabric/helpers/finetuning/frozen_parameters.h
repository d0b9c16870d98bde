#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include <fabric/helpers/finetuning/model_parameters.h>

namespace fabric {

/// Batch-norm layers whose running statistics stand still while their parameters are frozen, although the model trains:
/// they normalise by the batch's own statistics and update nothing. (Clearing `track_running_stats` does not do that in
/// LibTorch: it makes evaluation use the batch's statistics, too, and overwrites the running ones.) Layers without
/// parameters are left alone. Lets go of all when it is destroyed.
class FABRIC_API FrozenBatchNorm {
 public:
  explicit FrozenBatchNorm(std::shared_ptr<torch::nn::Module> module);
  ~FrozenBatchNorm();
  FrozenBatchNorm(const FrozenBatchNorm&) = delete;
  FrozenBatchNorm& operator=(const FrozenBatchNorm&) = delete;
  /// Holds each layer that has parameters but none that requires a gradient, and lets go of the others.
  void update();
  void release_all();

 private:
  struct Layer {
    std::function<void()> hold, release;
    std::vector<at::Tensor> parameters;
    bool held = false;
  };
  std::shared_ptr<torch::nn::Module> module_;
  std::vector<Layer> layers_;
};

/// Sets requires_grad on exactly these parameters and takes it (and the gradients) from all others. True when anything
/// changed.
FABRIC_API bool thaw_exactly(const ModelParameters& parameters, const std::vector<std::string>& names);

}  // namespace fabric
