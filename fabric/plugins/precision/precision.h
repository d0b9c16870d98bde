#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/scope.h>
#include <fabric/base/value.h>

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace fabric {

/// What `at::Tensor::backward` takes, under the same names.
struct BackwardOptions {
  /// The loss's own gradient, of its shape; needed for a loss of more than one element.
  at::Tensor gradient = {};
  /// Keeps the graph for a further pass; empty: as `create_graph` is.
  std::optional<bool> retain_graph = {};
  /// Makes gradients that can be differentiated again.
  bool create_graph = false;
  /// Tensors whose gradients are wanted; empty: all that the loss depends on.
  std::vector<at::Tensor> inputs = {};
};

/// In which number format parameters live and operators run. Base class: 32-true, where everything is left alone.
class FABRIC_API Precision {
 public:
  using Closure = std::function<at::Tensor()>;

  virtual ~Precision() = default;
  /// "32-true", "16-mixed", …
  virtual std::string name() const { return "32-true"; }

  /// Changes the module's parameters to the format; called once, by setup.
  virtual void convert_module(torch::nn::Module&) {}
  /// Default dtype (and the like) while tensors or modules are made.
  virtual Scope tensor_init_context() { return {}; }
  virtual Scope module_init_context() { return tensor_init_context(); }
  /// Default dtype, autocast (and the like) while the model runs.
  virtual Scope forward_context() { return {}; }
  /// Called for each tensor that enters and leaves the model; only floating ones convert.
  virtual at::Tensor convert_input(const at::Tensor& tensor) { return tensor; }
  virtual at::Tensor convert_output(const at::Tensor& tensor) { return tensor; }
  /// False when forward_context, convert_input and convert_output do nothing, so that the hot path skips them.
  virtual bool changes_forward() const { return false; }
  /// True when a plain `loss.backward()` would be wrong, so that calling it is an error.
  virtual bool requires_backward_call() const { return false; }

  virtual void backward(const at::Tensor& loss, const BackwardOptions& options = {});
  virtual at::Tensor optimizer_step(torch::optim::Optimizer& optimizer, const Closure& closure);
  /// The parameters that clipping goes over.
  virtual std::vector<at::Tensor> main_params(torch::optim::Optimizer& optimizer);
  /// Makes the optimizer's gradients those of the unscaled loss; a second call before the step does nothing. Throws
  /// MisuseError when a backward pass came in between, whose gradients are scaled still.
  virtual void unscale_gradients(torch::optim::Optimizer&) {}
  /// Called when the optimizer's gradients were set to zero.
  virtual void gradients_cleared(torch::optim::Optimizer&) {}
  /// True when the optimizer's unscaled gradients are known to hold infinities, so that its step will be skipped:
  /// clipping then has nothing to complain about.
  virtual bool will_skip_step(torch::optim::Optimizer&) { return false; }
  /// True when the last optimizer_step changed nothing because the gradients were not finite.
  virtual bool step_was_skipped() const { return false; }
  /// Sharded strategies share what they found: `share` gets the tensor that tells whether this rank saw infinities (one
  /// float, 0 or 1) and makes it the maximum over the ranks.
  virtual void set_found_inf_hook(std::function<void(at::Tensor&)>) {}

  virtual Value state_dict() const { return Value::Map{}; }
  virtual void load_state_dict(const Value&) {}
  virtual void teardown() {}
};

/// "64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed" and the aliases 64, 32 (true), 16, bf16
/// (mixed, with a warning), in any case. `device_type` is the accelerator's name: 16-mixed on "cpu" warns and becomes
/// bf16-mixed. Throws ConfigError naming the nearest.
FABRIC_API std::shared_ptr<Precision> make_precision(const std::string& name, const std::string& device_type = "cpu");
/// Adds a precision; throws ConfigError for a name that is taken unless `override_existing`.
FABRIC_API void register_precision(const std::string& name,
                                   std::function<std::shared_ptr<Precision>(const std::string& device_type)> make,
                                   bool override_existing = false, std::string description = "");
FABRIC_API std::vector<std::string> available_precisions();

}  // namespace fabric
