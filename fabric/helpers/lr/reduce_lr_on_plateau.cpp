#include <fabric/helpers/lr/reduce_lr_on_plateau.h>

#include <algorithm>
#include <limits>

namespace fabric {
namespace {

double worst(const std::string& mode) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return mode == "min" ? kInfinity : -kInfinity;
}

}  // namespace

void ReduceLROnPlateauConfig::validate() const {
  if (!(factor < 1)) throw ConfigError("ReduceLROnPlateau: factor must be below 1, given " + std::to_string(factor));
  if (mode != "min" && mode != "max")
    throw ConfigError("ReduceLROnPlateau: mode must be 'min' or 'max', given '" + mode + "'");
  if (threshold_mode != "rel" && threshold_mode != "abs")
    throw ConfigError("ReduceLROnPlateau: threshold_mode must be 'rel' or 'abs', given '" + threshold_mode + "'");
}

ReduceLROnPlateau::ReduceLROnPlateau(torch::optim::Optimizer& optimizer, Config config)
    : ConfiguredLR(optimizer, std::move(config)) {
  min_lrs_ = config_.min_lr.expand("ReduceLROnPlateau: min_lr", optimizer.param_groups().size());
  start_over();
}

// It goes by the present learning rates alone. So the groups get no initial ones from it: a scheduler that follows
// begins where the plateau has come to.
void ReduceLROnPlateau::start_over() {
  best_ = worst(config_.mode);
  num_bad_epochs_ = cooldown_counter_ = 0;
  base_lrs_ = group_lrs();
  initial_step();
}

// The first step, which has no metric, changes no learning rate.
double ReduceLROnPlateau::next_lr(std::size_t, double lr) { return lr; }

void ReduceLROnPlateau::advance(std::optional<double> metric) {
  if (is_initial()) return update(0, false);
  if (!metric)
    throw MisuseError("ReduceLROnPlateau needs the metric that it watches: call step(metric) after each validation");
  require_groups();
  ++last_epoch_;
  if (is_better(*metric)) {
    best_ = *metric;
    num_bad_epochs_ = 0;
  } else {
    ++num_bad_epochs_;
  }
  if (in_cooldown()) {
    --cooldown_counter_;
    num_bad_epochs_ = 0;
  }
  if (num_bad_epochs_ > config_.patience) {
    reduce();
    cooldown_counter_ = config_.cooldown;
    num_bad_epochs_ = 0;
  }
  note_lrs();
}

void ReduceLROnPlateau::reduce() {
  auto& groups = optimizer().param_groups();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const double before = get_lr(groups[g]);
    const double after = std::max(before * config_.factor, min_lrs_[g]);
    if (before - after > config_.eps) set_lr(groups[g], after);
  }
}

bool ReduceLROnPlateau::is_better(double metric) const {
  const bool relative = config_.threshold_mode == "rel";
  if (config_.mode == "min") return metric < (relative ? best_ * (1.0 - config_.threshold) : best_ - config_.threshold);
  return metric > (relative ? best_ * (config_.threshold + 1.0) : best_ + config_.threshold);
}

void ReduceLROnPlateau::grow(double initial_lr) {
  LRScheduler::grow(initial_lr);
  min_lrs_.resize(base_lrs_.size(), min_lrs_.empty() ? config_.min_lr.values().at(0) : double(min_lrs_[0]));
}

void ReduceLROnPlateau::shrink(std::size_t groups) {
  LRScheduler::shrink(groups);
  if (min_lrs_.size() > groups) min_lrs_.resize(groups);
}

void ReduceLROnPlateau::save_fields(Value& state) const {
  ConfiguredLR::save_fields(state);
  state["min_lrs"] = Value::List(min_lrs_.begin(), min_lrs_.end());
  state["best"] = best_;
  state["num_bad_epochs"] = num_bad_epochs_;
  state["cooldown_counter"] = cooldown_counter_;
}

void ReduceLROnPlateau::load_fields(const Value& state) {
  std::vector<double> min_lrs;
  for (const auto& item : state.at("min_lrs").as_list()) min_lrs.push_back(item.as_double());
  if (min_lrs.size() != state.at("base_lrs").as_list().size())
    throw MisuseError("min_lrs and base_lrs have different lengths");
  const double best = state.at("best").as_double();
  const auto bad = state.at("num_bad_epochs").as_int(), cooldown = state.at("cooldown_counter").as_int();
  ConfiguredLR::load_fields(state);
  min_lrs_ = std::move(min_lrs);
  best_ = best;
  num_bad_epochs_ = bad;
  cooldown_counter_ = cooldown;
}

}  // namespace fabric
