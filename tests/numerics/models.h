#pragma once
// The models of the release gate, as record_numerics.py has them: layers made in the same order from the same seed, the
// same samples in the same order.

#include <torch/torch.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace numerics {

/// What one step takes: the arguments of the model's forward, and the targets.
struct Batch {
  std::vector<torch::Tensor> inputs;
  torch::Tensor target;
};

/// A model with all that its training needs. `forward` returns logits, one row for each target.
struct Model : torch::nn::Module {
  virtual torch::Tensor forward(const std::vector<torch::Tensor>& inputs) = 0;
  virtual Batch rows(const std::vector<std::int64_t>& indices) const = 0;
  virtual std::int64_t size() const = 0;
  /// For dp, which copies a module to each of its devices.
  std::shared_ptr<torch::nn::Module> clone(const std::optional<torch::Device>& device) const override;
  std::string made_as;     // its name for make_model
  std::int64_t batch = 0;  // samples in a step, over all ranks
  double rate = 0;
  double max_norm = 0;  // of clipping; 0: none
};

/// "digits", "transformer", "encoder".
const std::vector<std::string>& model_names();
/// Made anew, always with the same initial values.
std::shared_ptr<Model> make_model(const std::string& name);

}  // namespace numerics
