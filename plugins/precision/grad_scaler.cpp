#include <fabric/plugins/precision/grad_scaler.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_amp_update_scale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/optim/optimizer.h>

namespace fabric {
namespace {

at::TensorOptions on(c10::Device device, c10::ScalarType dtype) {
  return at::TensorOptions().device(device).dtype(dtype);
}

void check(const GradScaler::Config& config) {
  auto refuse = [](const char* what, double given, const char* allowed) {
    throw ConfigError("GradScaler: " + std::string(what) + " is " + std::to_string(given) + ", it must be " + allowed);
  };
  if (!(config.init_scale > 0) || !std::isfinite(config.init_scale))
    refuse("init_scale", config.init_scale, "positive");
  if (!(config.growth_factor > 1)) refuse("growth_factor", config.growth_factor, "more than 1");
  if (!(config.backoff_factor > 0 && config.backoff_factor < 1))
    refuse("backoff_factor", config.backoff_factor, "between 0 and 1");
  if (config.growth_interval <= 0) refuse("growth_interval", static_cast<double>(config.growth_interval), "at least 1");
}

// What holds the numbers of a gradient; those of a sparse one have to be summed first, since the sum may overflow.
at::Tensor numbers(at::Tensor& gradient) {
  if (!gradient.is_sparse()) return gradient;
  if (!gradient.is_coalesced()) gradient = gradient.coalesce();
  return gradient._values();
}

}  // namespace

// Where one optimizer stands since the last update.
struct GradScaler::Progress {
  const torch::optim::Optimizer* optimizer = nullptr;
  bool unscaled = false;
  bool stepped = false;
  bool mixed = false;                         // scaled gradients came to unscaled ones
  at::Tensor found;                           // one float, undefined until the gradients were checked
  mutable std::optional<bool> found_on_host;  // the same, once it was read
  // Of an optimizer whose gradients are unscaled: it may be gone by the next backward pass.
  std::vector<at::Tensor> parameters;
  std::uint64_t gradients = 0;  // which, and how often written, before a backward pass

  bool is_pending() const { return unscaled && !stepped; }
  void reset() {
    unscaled = stepped = mixed = false;
    found.reset();
    found_on_host.reset();
    parameters.clear();
  }
  /// Waits for the device once: clipping asks, and so does the step.
  bool found_inf() const {
    if (!found_on_host) found_on_host = found.defined() && found.item<float>() != 0;
    return *found_on_host;
  }
  std::uint64_t gradients_now() const {
    std::uint64_t sum = 0;
    for (const auto& parameter : parameters)
      if (const auto& gradient = parameter.grad(); gradient.defined())
        sum = sum * 1099511628211u + reinterpret_cast<std::uintptr_t>(gradient.unsafeGetTensorImpl()) +
              static_cast<std::uint64_t>(gradient._version());
    return sum;
  }
};

// Gradients that one kernel can work on together.
struct GradScaler::Batch {
  c10::Device device;
  c10::ScalarType dtype;
  std::vector<at::Tensor> gradients;
};

GradScaler::GradScaler(Config config) : config_(config), start_scale_(config.init_scale) { check(config_); }
GradScaler::~GradScaler() = default;

GradScaler::Progress& GradScaler::progress_of(const torch::optim::Optimizer& optimizer) {
  for (auto& progress : optimizers_)
    if (progress.optimizer == &optimizer) return progress;
  return optimizers_.emplace_back(Progress{.optimizer = &optimizer});
}

const GradScaler::Progress* GradScaler::find(const torch::optim::Optimizer& optimizer) const {
  for (const auto& progress : optimizers_)
    if (progress.optimizer == &optimizer) return &progress;
  return nullptr;
}

at::Tensor GradScaler::scale(const at::Tensor& loss) {
  if (!config_.enabled) return loss;
  if (!scale_.defined()) {
    scale_ = at::full({}, start_scale_, on(loss.device(), c10::ScalarType::Float));
    growth_tracker_ = at::full({}, start_tracker_, on(loss.device(), c10::ScalarType::Int));
  }
  return loss.mul(loss.device() == scale_.device() ? scale_ : scale_.to(loss.device()));
}

// Fills batches_, keeping their memory from step to step.
void GradScaler::collect(torch::optim::Optimizer& optimizer) {
  for (auto& group : optimizer.param_groups()) {
    for (auto& parameter : group.params()) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (!gradient.defined()) continue;
      auto dtype = gradient.scalar_type();
      if (dtype == c10::ScalarType::Half || dtype == c10::ScalarType::BFloat16)
        throw MisuseError(
            "a GradScaler cannot unscale 16-bit gradients: keep the parameters in 32 bits (precision '16-mixed'), or "
            "train "
            "in 16 bits without a scaler (precision '16-true' or 'bf16-true')");
      auto values = numbers(gradient);
      auto batch = std::find_if(batches_.begin(), batches_.end(), [&](const Batch& candidate) {
        return candidate.device == values.device() && candidate.dtype == dtype;
      });
      if (batch == batches_.end()) batch = batches_.insert(batch, Batch{values.device(), dtype, {}});
      batch->gradients.push_back(std::move(values));
    }
  }
}

void GradScaler::check_gradients(torch::optim::Optimizer& optimizer, Progress& progress, bool divide) {
  if (!scale_.defined())
    throw MisuseError(
        "gradients cannot be unscaled before a loss was scaled. Write fabric.backward(loss), or "
        "scale(loss).backward()");
  c10::NoGradGuard no_grad;
  for (auto& batch : batches_) batch.gradients.clear();
  collect(optimizer);
  progress.found = at::zeros({}, scale_.options());
  progress.found_on_host.reset();
  auto inverse = divide ? scale_.to(c10::ScalarType::Double).reciprocal().to(c10::ScalarType::Float)
                        : at::full({}, 1.0, scale_.options());
  for (auto& batch : batches_) {
    if (batch.gradients.empty()) continue;
    bool here = batch.device == scale_.device();
    auto found = here ? progress.found : at::zeros({}, on(batch.device, c10::ScalarType::Float));
    at::_amp_foreach_non_finite_check_and_unscale_(batch.gradients, found, here ? inverse : inverse.to(batch.device));
    if (!here) progress.found.add_(found.to(scale_.device()));
    batch.gradients.clear();
  }
  if (share_) share_(progress.found);
}

void GradScaler::unscale_(torch::optim::Optimizer& optimizer) {
  if (!config_.enabled) return;
  auto& progress = progress_of(optimizer);
  refuse_mixed(progress);
  if (progress.unscaled)
    throw MisuseError("unscale_ was called twice for this optimizer since the last update: its gradients are unscaled");
  if (progress.stepped) throw MisuseError("unscale_ was called after step: call update() first");
  check_gradients(optimizer, progress, /*divide=*/true);
  progress.unscaled = true;
  for (const auto& group : optimizer.param_groups())
    progress.parameters.insert(progress.parameters.end(), group.params().begin(), group.params().end());
}

at::Tensor GradScaler::step(torch::optim::Optimizer& optimizer) {
  if (!config_.enabled) return optimizer.step();
  auto& progress = progress_of(optimizer);
  refuse_mixed(progress);
  if (progress.stepped)
    throw MisuseError("step was called twice for this optimizer: call update() after each iteration");
  if (auto* own = dynamic_cast<UnscalingOptimizer*>(&optimizer)) {
    if (!progress.unscaled) check_gradients(optimizer, progress, /*divide=*/false);
    own->set_grad_scale(progress.unscaled ? at::full({}, 1.0, scale_.options()) : scale_, progress.found);
    progress.stepped = true;
    last_found_ = progress.found;
    last_skipped_ = progress.found_on_host;
    return optimizer.step();
  }
  if (!progress.unscaled) check_gradients(optimizer, progress, /*divide=*/true);
  progress.unscaled = progress.stepped = true;
  last_found_ = progress.found;
  last_skipped_ = progress.found_inf();
  return *last_skipped_ ? at::Tensor() : optimizer.step();
}

void GradScaler::update() {
  if (!config_.enabled) return;
  at::Tensor found = discarded_found_;
  for (auto& progress : optimizers_)
    if (progress.found.defined()) found = found.defined() ? found.add(progress.found) : progress.found;
  if (!found.defined())
    throw MisuseError("update was called, but no optimizer was unscaled or stepped since the last update");
  at::_amp_update_scale_(scale_, growth_tracker_, found, config_.growth_factor, config_.backoff_factor,
                         config_.growth_interval);
  begin_iteration();
}

void GradScaler::discard(const torch::optim::Optimizer& optimizer) {
  for (auto& progress : optimizers_) {
    if (progress.optimizer != &optimizer || !progress.is_pending()) continue;
    discarded_found_ = discarded_found_.defined() ? discarded_found_.add(progress.found) : progress.found;
    progress.reset();
  }
}

void GradScaler::before_backward() {
  for (auto& progress : optimizers_)
    if (progress.is_pending()) progress.gradients = progress.gradients_now();
}

void GradScaler::after_backward() {
  for (auto& progress : optimizers_)
    if (progress.is_pending() && progress.gradients != progress.gradients_now()) progress.mixed = true;
}

void GradScaler::refuse_mixed(const Progress& progress) {
  if (progress.mixed)
    throw MisuseError(
        "gradients were unscaled (clipped), and then a backward pass added more, which are scaled. Unscale or clip "
        "once, after the last backward pass before the step; to drop gradients without a step, call "
        "optimizer.zero_grad() on what setup returned");
}

void GradScaler::update(double new_scale) {
  if (!config_.enabled) return;
  if (!(new_scale > 0) || !std::isfinite(new_scale))
    throw MisuseError("the scale must be positive, given " + std::to_string(new_scale));
  start_scale_ = new_scale;
  if (scale_.defined()) scale_.fill_(new_scale);
  begin_iteration();
}

// Optimizers that took no part are forgotten: they may be gone.
void GradScaler::begin_iteration() {
  discarded_found_.reset();
  auto idle = [](const Progress& progress) { return !progress.unscaled && !progress.stepped; };
  optimizers_.erase(std::remove_if(optimizers_.begin(), optimizers_.end(), idle), optimizers_.end());
  for (auto& progress : optimizers_) progress.reset();
}

double GradScaler::get_scale() const {
  if (!config_.enabled) return 1.0;
  return scale_.defined() ? scale_.item<double>() : start_scale_;
}

bool GradScaler::is_unscaled(const torch::optim::Optimizer& optimizer) const {
  const auto* progress = find(optimizer);
  return progress && progress->is_pending() && !progress->mixed;
}

bool GradScaler::found_inf(const torch::optim::Optimizer& optimizer) const {
  const auto* progress = find(optimizer);
  return progress && progress->found.defined() && progress->found_inf();
}

bool GradScaler::has_stepped(const torch::optim::Optimizer& optimizer) const {
  const auto* progress = find(optimizer);
  return progress && progress->stepped;
}

// What was found in discarded gradients can wait, gradients that are unscaled already cannot be unscaled again.
bool GradScaler::needs_update() const {
  auto pending = [](const Progress& progress) { return progress.is_pending(); };
  if (discarded_found_.defined() && std::none_of(optimizers_.begin(), optimizers_.end(), pending)) return true;
  return std::any_of(optimizers_.begin(), optimizers_.end(), [](const Progress& progress) { return progress.stepped; });
}

bool GradScaler::step_was_skipped() const {
  if (!last_found_.defined()) return false;
  if (!last_skipped_) last_skipped_ = last_found_.item<float>() != 0;
  return *last_skipped_;
}

Value GradScaler::state_dict() const {
  if (!config_.enabled) return Value::Map{};
  std::int64_t tracker = growth_tracker_.defined() ? growth_tracker_.item<int>() : start_tracker_;
  return Value::Map{{"scale", get_scale()},
                    {"growth_factor", config_.growth_factor},
                    {"backoff_factor", config_.backoff_factor},
                    {"growth_interval", config_.growth_interval},
                    {"_growth_tracker", tracker}};
}

void GradScaler::load_state_dict(const Value& state) {
  if (!config_.enabled) return;
  auto entry = [&](const char* key) -> const Value& {
    if (const Value* found = state.find(key); found && found->is_number()) return *found;
    throw CheckpointKeyError(std::string("the state of a GradScaler has no number '") + key +
                             "'; it may come from a disabled one. Load it into a GradScaler with enabled=false");
  };
  Config loaded = config_;
  loaded.init_scale = entry("scale").as_double();
  loaded.growth_factor = entry("growth_factor").as_double();
  loaded.backoff_factor = entry("backoff_factor").as_double();
  loaded.growth_interval = static_cast<std::int64_t>(entry("growth_interval").as_double());
  auto tracker = static_cast<std::int64_t>(entry("_growth_tracker").as_double());
  check(loaded);
  start_scale_ = std::exchange(loaded.init_scale, config_.init_scale);
  start_tracker_ = tracker;
  config_ = loaded;
  if (scale_.defined()) {
    scale_.fill_(start_scale_);
    growth_tracker_.fill_(start_tracker_);
  }
  begin_iteration();
}

}  // namespace fabric
