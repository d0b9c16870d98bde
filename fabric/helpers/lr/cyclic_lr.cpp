#include <fabric/helpers/lr/cyclic_lr.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "fabric/helpers/lr/lr_values_internal.h"

// Each formula does its operations in the order in which torch.optim.lr_scheduler does them.
namespace fabric {
namespace {

std::vector<double> numbers_of(const Value& list, std::size_t size) {
  auto numbers = lr::numbers_of(list);
  if (numbers.size() != size)
    throw MisuseError("a list has " + std::to_string(numbers.size()) + " entries for " + std::to_string(size) +
                      " groups");
  return numbers;
}

}  // namespace

void MomentumCycle::require(const char* name, const torch::optim::Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups())
    if (!get_momentum(group))
      throw ConfigError(std::string(name) +
                        ": the optimizer must have momentum or betas while cycle_momentum is on (SGD, RMSprop, Adam, "
                        "AdamW); set cycle_momentum = false");
}

void MomentumCycle::start(const char* name, torch::optim::Optimizer& optimizer, const PerGroup& base,
                          const PerGroup& max, bool set) {
  require(name, optimizer);
  auto& groups = optimizer.param_groups();
  base_ = base.expand(std::string(name) + ": base_momentum", groups.size());
  max_ = max.expand(std::string(name) + ": max_momentum", groups.size());
  for (std::size_t g = 0; set && g < groups.size(); ++g) set_momentum(groups[g], max_[g]);
}

void MomentumCycle::grow() {
  base_.push_back(double(base_.front()));
  max_.push_back(double(max_.front()));
}

void MomentumCycle::shrink(std::size_t groups) {
  if (base_.size() > groups) base_.resize(groups), max_.resize(groups);
}

Value MomentumCycle::state() const { return Value::Map{{"base", lr::list_of(base_)}, {"max", lr::list_of(max_)}}; }

void MomentumCycle::load(const Value& state) {
  auto base = numbers_of(state.at("base"), state.at("base").as_list().size());
  max_ = numbers_of(state.at("max"), base.size());
  base_ = std::move(base);
}

// --- CyclicLR

void CyclicLRConfig::validate() const {
  if (!base_lr.is_given() || !max_lr.is_given()) throw ConfigError("CyclicLR: base_lr and max_lr must be given");
  if (step_size_up < 1)
    throw ConfigError("CyclicLR: step_size_up must be 1 or more, given " + std::to_string(step_size_up));
  if (step_size_down && *step_size_down < 0)
    throw ConfigError("CyclicLR: step_size_down must be 0 or more, given " + std::to_string(*step_size_down));
  if (!scale_fn && mode != "triangular" && mode != "triangular2" && mode != "exp_range")
    throw ConfigError("CyclicLR: mode must be 'triangular', 'triangular2' or 'exp_range' where there is no scale_fn, " +
                      ("given '" + mode + "'"));
  if (scale_mode != "cycle" && scale_mode != "iterations")
    throw ConfigError("CyclicLR: scale_mode must be 'cycle' or 'iterations', given '" + scale_mode + "'");
}

CyclicLR::CyclicLR(torch::optim::Optimizer& optimizer, Config config) : ConfiguredLR(optimizer, std::move(config)) {
  begin(config_.last_epoch);
}

void CyclicLR::begin(std::int64_t last_epoch) {
  auto& groups = optimizer().param_groups();
  auto base = config_.base_lr.expand("CyclicLR: base_lr", groups.size());
  auto max = config_.max_lr.expand("CyclicLR: max_lr", groups.size());
  if (config_.cycle_momentum)
    momentum_.start(name(), optimizer(), config_.base_momentum, config_.max_momentum, last_epoch == -1);
  for (std::size_t g = 0; last_epoch == -1 && g < groups.size(); ++g) set_lr(groups[g], base[g]);
  max_lrs_ = std::move(max);
  start(last_epoch);
  base_lrs_ = std::move(base);  // after the first step, which goes from the initial ones
}

CyclicLR::Place CyclicLR::place() const {
  const double up = lr::real(config_.step_size_up);
  const double total = up + (config_.step_size_down ? lr::real(*config_.step_size_down) : up);
  const double ratio = up / total;
  const double cycle = std::floor(1 + lr::real(last_epoch_) / total);
  const double x = 1.0 + lr::real(last_epoch_) / total - cycle;
  const double height = x <= ratio ? x / ratio : (x - 1) / (ratio - 1);
  if (config_.scale_fn)
    return {height, config_.scale_fn(config_.scale_mode == "cycle" ? cycle : lr::real(last_epoch_))};
  if (config_.mode == "triangular2") return {height, 1 / std::pow(2.0, cycle - 1)};
  if (config_.mode == "exp_range") return {height, std::pow(config_.gamma, lr::real(last_epoch_))};
  return {height, 1};
}

double CyclicLR::next_lr(std::size_t group, double) {
  const auto [height, scale] = place();
  return base_lrs_[group] + (max_lrs_[group] - base_lrs_[group]) * height * scale;
}

void CyclicLR::update_momentum() {
  if (!config_.cycle_momentum) return;
  const auto [height, scale] = place();
  auto& groups = optimizer().param_groups();
  for (std::size_t g = 0; g < groups.size(); ++g)
    set_momentum(groups[g], momentum_.max(g) - (momentum_.max(g) - momentum_.base(g)) * height * scale);
}

void CyclicLR::grow(double initial_lr) {
  if (base_lrs_.empty()) throw MisuseError("CyclicLR: there is no group left whose bounds a new one could follow");
  const bool in_proportion = base_lrs_[0] != 0;
  max_lrs_.push_back(in_proportion ? initial_lr * (max_lrs_[0] / base_lrs_[0]) : double(max_lrs_[0]));
  if (config_.cycle_momentum) momentum_.grow();
  LRScheduler::grow(initial_lr);
}

void CyclicLR::shrink(std::size_t groups) {
  LRScheduler::shrink(groups);
  if (max_lrs_.size() > groups) max_lrs_.resize(groups);
  momentum_.shrink(groups);
}

void CyclicLR::rebind(torch::optim::Optimizer& optimizer) {
  if (config_.cycle_momentum) MomentumCycle::require(name(), optimizer);
  LRScheduler::rebind(optimizer);
}

void CyclicLR::save_fields(Value& state) const {
  ConfiguredLR::save_fields(state);
  state["max_lrs"] = lr::list_of(max_lrs_);
  state["momentum"] = momentum_.state();
  if (config_.scale_fn) state["scale_fn"] = "not saved: a function must be given to the constructor again";
}

void CyclicLR::load_fields(const Value& state) {
  auto max = numbers_of(state.at("max_lrs"), state.at("base_lrs").as_list().size());
  auto momentum = momentum_;
  momentum.load(state.at("momentum"));
  auto scale_fn = config_.scale_fn;
  if (state.find("scale_fn") && !scale_fn)
    throw MisuseError("it was made with a scale_fn, which no file can hold; make this one with the same function");
  auto config = from_tree<Config>(fabric::to_tree(state.at("config")), {.scale_fn = scale_fn});
  config_ = std::move(config);
  max_lrs_ = std::move(max);
  momentum_ = std::move(momentum);
}

// --- OneCycleLR

void OneCycleLRConfig::validate() const {
  auto positive = [](const char* what, std::int64_t value) {
    if (value < 1)
      throw ConfigError(std::string("OneCycleLR: ") + what + " must be 1 or more, given " + std::to_string(value));
  };
  if (!max_lr.is_given()) throw ConfigError("OneCycleLR: max_lr must be given");
  if (total_steps) {
    positive("total_steps", *total_steps);
  } else if (epochs && steps_per_epoch) {
    positive("epochs", *epochs);
    positive("steps_per_epoch", *steps_per_epoch);
  } else {
    throw ConfigError("OneCycleLR: give total_steps, or both epochs and steps_per_epoch");
  }
  if (!(pct_start >= 0 && pct_start <= 1))
    throw ConfigError("OneCycleLR: pct_start must be between 0 and 1, given " + std::to_string(pct_start));
  if (anneal_strategy != "cos" && anneal_strategy != "linear")
    throw ConfigError("OneCycleLR: anneal_strategy must be 'cos' or 'linear', given '" + anneal_strategy + "'");
  if (!(div_factor > 0) || !(final_div_factor > 0))
    throw ConfigError("OneCycleLR: div_factor and final_div_factor must be above 0");
}

OneCycleLR::OneCycleLR(torch::optim::Optimizer& optimizer, Config config) : ConfiguredLR(optimizer, std::move(config)) {
  begin(config_.last_epoch);
}

void OneCycleLR::begin(std::int64_t last_epoch) {
  auto& groups = optimizer().param_groups();
  auto max = config_.max_lr.expand("OneCycleLR: max_lr", groups.size());
  if (config_.cycle_momentum)
    momentum_.start(name(), optimizer(), config_.base_momentum, config_.max_momentum, last_epoch == -1);
  std::vector<double> initial(max), min(max);
  for (std::size_t g = 0; g < max.size(); ++g) {
    initial[g] = max[g] / config_.div_factor;
    min[g] = initial[g] / config_.final_div_factor;
  }
  max_lrs_ = std::move(max), min_lrs_ = std::move(min);
  make_phases();
  if (last_epoch == -1) set_initial_lrs(std::move(initial));
  start(last_epoch);
}

void OneCycleLR::make_phases() {
  using enum Bound;
  const double steps = lr::real(config_.steps());
  phases_ = {{config_.pct_start * steps - 1, initial, max, max, initial}};
  if (config_.three_phase) {
    phases_.push_back({2 * config_.pct_start * steps - 2, max, initial, initial, max});
    phases_.push_back({steps - 1, initial, min, max, max});
  } else {
    phases_.push_back({steps - 1, max, min, initial, max});
  }
}

double OneCycleLR::lr_of(Bound bound, std::size_t group) const {
  if (bound == Bound::initial) return initial_lrs()[group];
  return bound == Bound::max ? max_lrs_[group] : min_lrs_[group];
}

double OneCycleLR::momentum_of(Bound bound, std::size_t group) const {
  return bound == Bound::max ? momentum_.max(group) : momentum_.base(group);
}

OneCycleLR::Place OneCycleLR::place() const {
  const double step = lr::real(last_epoch_);
  double begin = 0;
  const Phase* phase = phases_.data();
  for (; phase != &phases_.back() && step > phase->end; ++phase) begin = phase->end;
  // A part that takes no step at all is over when it begins.
  return {phase, phase->end == begin ? 1 : (step - begin) / (phase->end - begin)};
}

double OneCycleLR::between(double from, double to, double share) const {
  if (config_.anneal_strategy == "linear") return (to - from) * share + from;
  return to + (from - to) / 2.0 * (std::cos(std::numbers::pi * share) + 1);
}

double OneCycleLR::next_lr(std::size_t group, double) {
  if (last_epoch_ > config_.steps())
    throw MisuseError("OneCycleLR: tried to step " + std::to_string(last_epoch_) + " times; the cycle has " +
                      std::to_string(config_.steps()) +
                      " steps in all. Stop stepping, or make it with more total_steps");
  const auto [phase, share] = place();
  return between(lr_of(phase->from_lr, group), lr_of(phase->to_lr, group), share);
}

void OneCycleLR::update_momentum() {
  if (!config_.cycle_momentum) return;
  const auto [phase, share] = place();
  auto& groups = optimizer().param_groups();
  for (std::size_t g = 0; g < groups.size(); ++g)
    set_momentum(groups[g], between(momentum_of(phase->from_momentum, g), momentum_of(phase->to_momentum, g), share));
}

void OneCycleLR::grow(double initial_lr) {
  if (config_.cycle_momentum) {
    if (base_lrs_.empty()) throw MisuseError("OneCycleLR: there is no group left whose bounds a new one could follow");
    momentum_.grow();
  }
  max_lrs_.push_back(initial_lr * config_.div_factor);
  min_lrs_.push_back(initial_lr / config_.final_div_factor);
  LRScheduler::grow(initial_lr);
}

void OneCycleLR::shrink(std::size_t groups) {
  LRScheduler::shrink(groups);
  if (max_lrs_.size() > groups) max_lrs_.resize(groups), min_lrs_.resize(groups);
  momentum_.shrink(groups);
}

void OneCycleLR::rebind(torch::optim::Optimizer& optimizer) {
  if (config_.cycle_momentum) MomentumCycle::require(name(), optimizer);
  LRScheduler::rebind(optimizer);
}

void OneCycleLR::save_fields(Value& state) const {
  ConfiguredLR::save_fields(state);
  state["max_lrs"] = lr::list_of(max_lrs_);
  state["min_lrs"] = lr::list_of(min_lrs_);
  state["momentum"] = momentum_.state();
}

void OneCycleLR::load_fields(const Value& state) {
  const std::size_t groups = state.at("base_lrs").as_list().size();
  auto max = numbers_of(state.at("max_lrs"), groups);
  auto min = numbers_of(state.at("min_lrs"), groups);
  auto momentum = momentum_;
  momentum.load(state.at("momentum"));
  ConfiguredLR::load_fields(state);
  max_lrs_ = std::move(max);
  min_lrs_ = std::move(min);
  momentum_ = std::move(momentum);
  make_phases();
}

}  // namespace fabric
