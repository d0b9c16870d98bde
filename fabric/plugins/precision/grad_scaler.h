#pragma once

#include <functional>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/value.h>
#include <fabric/config.h>

namespace torch::optim {
class Optimizer;
}

namespace fabric {

/// For optimizers whose step can divide the gradients by the scale and skip by itself, so that the host need not wait
/// for the device: derive from this beside torch::optim::Optimizer.
class FABRIC_API UnscalingOptimizer {
 public:
  virtual ~UnscalingOptimizer() = default;
  /// For the next step only: both hold one float on the device of the parameters; `found_inf` is 1 when the step must
  /// change nothing.
  virtual void set_grad_scale(const at::Tensor& scale, const at::Tensor& found_inf) = 0;
};

/// Keeps the gradients of 16-bit floating operators from vanishing: the loss is multiplied by a scale, the gradients
/// are divided by it before the step, and a step whose gradients are not finite is skipped. The scale grows after a
/// number of good steps in a row and shrinks after a skipped one. Same numbers and same state as PyTorch's class. Not
/// thread-safe.
class FABRIC_API GradScaler {
 public:
  struct Config {
    double init_scale = 65536.0;
    double growth_factor = 2.0;
    double backoff_factor = 0.5;
    std::int64_t growth_interval = 2000;
    bool enabled = true;
    FABRIC_FIELDS(Config, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
  };

  GradScaler() : GradScaler(Config()) {}
  /// Throws ConfigError for a growth factor of 1 or less, a backoff factor outside (0, 1), a scale or interval of 0 or
  /// less.
  explicit GradScaler(Config config);
  ~GradScaler();
  GradScaler(const GradScaler&) = delete;
  GradScaler& operator=(const GradScaler&) = delete;

  bool enabled() const { return config_.enabled; }
  const Config& config() const { return config_; }

  /// The loss times the scale, on the loss's device.
  at::Tensor scale(const at::Tensor& loss);
  /// Divides the gradients by the scale, in place. Throws MisuseError when they already are, when the optimizer has
  /// stepped since the last update, and for 16-bit gradients, which cannot hold what was saved by scaling.
  void unscale_(torch::optim::Optimizer& optimizer);
  /// Unscales unless that was done, then steps, or skips the step when a gradient is not finite. Returns what the
  /// optimizer's step returned. Throws MisuseError when called twice without an update between.
  at::Tensor step(torch::optim::Optimizer& optimizer);
  /// Adapts the scale to what was found since the last update and begins the next iteration. Throws MisuseError when no
  /// optimizer was unscaled or stepped.
  void update();
  /// The optimizer's gradients were thrown away without a step: the next ones have to be unscaled again. What was found
  /// in them still counts at the next update. Does nothing for gradients that were not unscaled.
  void discard(const torch::optim::Optimizer& optimizer);
  /// Around a backward pass of a scaled loss: an optimizer whose gradients are unscaled and not stepped, and to which
  /// the pass adds, is refused by unscale_ and step (MisuseError) until its gradients are discarded.
  void before_backward();
  void after_backward();
  /// Sets the scale instead of adapting it, and begins the next iteration.
  void update(double new_scale);

  /// The present scale; 1 when disabled. Waits for the device.
  double get_scale() const;
  /// Whether the optimizer's gradients, since the last update, were unscaled, and found not finite (waits for the
  /// device).
  bool is_unscaled(const torch::optim::Optimizer& optimizer) const;
  bool found_inf(const torch::optim::Optimizer& optimizer) const;
  bool has_stepped(const torch::optim::Optimizer& optimizer) const;
  /// True when any optimizer has stepped since the last update, or gradients were discarded and no others wait.
  bool needs_update() const;
  /// Whether the last call of step skipped. May wait for the device.
  bool step_was_skipped() const;
  /// Called with the one-float tensor found_inf after each check, to make it the maximum over ranks.
  void set_found_inf_hook(std::function<void(at::Tensor&)> share) { share_ = std::move(share); }

  /// "scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"; empty when disabled.
  Value state_dict() const;
  /// Throws CheckpointKeyError when a key is missing, or all are.
  void load_state_dict(const Value& state);

 private:
  struct Progress;
  struct Batch;
  Progress& progress_of(const torch::optim::Optimizer& optimizer);
  const Progress* find(const torch::optim::Optimizer& optimizer) const;
  void check_gradients(torch::optim::Optimizer& optimizer, Progress& progress, bool divide);
  void collect(torch::optim::Optimizer& optimizer);
  void begin_iteration();
  static void refuse_mixed(const Progress& progress);

  Config config_;
  double start_scale_;
  std::int64_t start_tracker_ = 0;
  at::Tensor scale_;           // one float, made on the first loss's device
  at::Tensor growth_tracker_;  // good steps since the scale last changed
  std::vector<Progress> optimizers_;
  std::vector<Batch> batches_;
  std::function<void(at::Tensor&)> share_;
  at::Tensor last_found_;
  mutable std::optional<bool> last_skipped_;  // what is in last_found_, once the host has read it
  at::Tensor discarded_found_;                // in gradients that were discarded; undefined: none were
};

}  // namespace fabric
