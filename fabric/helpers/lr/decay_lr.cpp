#include <fabric/helpers/lr/decay_lr.h>

#include <algorithm>
#include <cmath>

#include "fabric/helpers/lr/lr_values_internal.h"

// Each formula does its operations in the order in which torch.optim.lr_scheduler does them, so that the numbers are
// the same to the last bits after many steps.
namespace fabric {
namespace {

std::string rate_text(double value) { return fabric::to_string(Value(value)); }

}  // namespace

void StepLRConfig::validate() const {
  if (!step_size) throw ConfigError("StepLR: step_size must be given, the number of epochs between two decays");
  if (*step_size < 1) throw ConfigError("StepLR: step_size must be 1 or more, given " + std::to_string(*step_size));
}

StepLR::StepLR(torch::optim::Optimizer& optimizer, Config config) : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double StepLR::next_lr(std::size_t, double lr) {
  return last_epoch_ == 0 || last_epoch_ % *config_.step_size != 0 ? lr : lr * config_.gamma;
}

double StepLR::closed_form_lr(std::size_t group) {
  return base_lrs_[group] * std::pow(config_.gamma, lr::real(last_epoch_ / *config_.step_size));
}

MultiStepLR::MultiStepLR(torch::optim::Optimizer& optimizer, Config config)
    : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double MultiStepLR::next_lr(std::size_t, double lr) {
  auto times = std::count(config_.milestones.begin(), config_.milestones.end(), last_epoch_);
  return times == 0 ? lr : lr * std::pow(config_.gamma, lr::real(times));
}

double MultiStepLR::closed_form_lr(std::size_t group) {
  auto times = std::count_if(config_.milestones.begin(), config_.milestones.end(),
                             [&](std::int64_t milestone) { return milestone <= last_epoch_; });
  return base_lrs_[group] * std::pow(config_.gamma, lr::real(times));
}

void ConstantLRConfig::validate() const {
  if (!(factor >= 0 && factor <= 1))
    throw ConfigError("ConstantLR: factor must be between 0 and 1, given " + rate_text(factor));
}

ConstantLR::ConstantLR(torch::optim::Optimizer& optimizer, Config config) : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double ConstantLR::next_lr(std::size_t group, double lr) {
  if (last_epoch_ == 0) return lr * config_.factor;
  if (last_epoch_ != config_.total_iters) return lr;
  // Nothing is left of a learning rate that was multiplied by 0.
  return config_.factor == 0 ? base_lrs_[group] : lr * (1.0 / config_.factor);
}

double ConstantLR::closed_form_lr(std::size_t group) {
  return base_lrs_[group] * (config_.factor + (last_epoch_ >= config_.total_iters ? 1 : 0) * (1 - config_.factor));
}

void LinearLRConfig::validate() const {
  if (!(start_factor > 0 && start_factor <= 1))
    throw ConfigError("LinearLR: start_factor must be above 0 and at most 1, given " + rate_text(start_factor));
  if (!(end_factor >= 0 && end_factor <= 1))
    throw ConfigError("LinearLR: end_factor must be between 0 and 1, given " + rate_text(end_factor));
  if (total_iters < 1)
    throw ConfigError("LinearLR: total_iters must be 1 or more, given " + std::to_string(total_iters));
}

LinearLR::LinearLR(torch::optim::Optimizer& optimizer, Config config) : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double LinearLR::next_lr(std::size_t, double lr) {
  if (last_epoch_ == 0) return lr * config_.start_factor;
  if (is_initial() || last_epoch_ > config_.total_iters) return lr;
  const double change = config_.end_factor - config_.start_factor;
  return lr *
         (1.0 + change / (lr::real(config_.total_iters) * config_.start_factor + lr::real(last_epoch_ - 1) * change));
}

double LinearLR::closed_form_lr(std::size_t group) {
  return base_lrs_[group] * (config_.start_factor + (config_.end_factor - config_.start_factor) *
                                                        lr::real(std::min(config_.total_iters, last_epoch_)) /
                                                        lr::real(config_.total_iters));
}

void ExponentialLRConfig::validate() const {
  if (!gamma) throw ConfigError("ExponentialLR: gamma must be given, the factor of each epoch");
}

ExponentialLR::ExponentialLR(torch::optim::Optimizer& optimizer, Config config)
    : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double ExponentialLR::next_lr(std::size_t, double lr) { return is_initial() ? lr : lr * *config_.gamma; }

double ExponentialLR::closed_form_lr(std::size_t group) {
  return base_lrs_[group] * std::pow(*config_.gamma, lr::real(last_epoch_));
}

void PolynomialLRConfig::validate() const {
  if (total_iters < 1)
    throw ConfigError("PolynomialLR: total_iters must be 1 or more, given " + std::to_string(total_iters));
}

PolynomialLR::PolynomialLR(torch::optim::Optimizer& optimizer, Config config)
    : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double PolynomialLR::next_lr(std::size_t, double lr) {
  if (is_initial() || last_epoch_ > config_.total_iters) return lr;
  const double total = lr::real(config_.total_iters);
  const double decay = (1.0 - lr::real(last_epoch_) / total) / (1.0 - lr::real(last_epoch_ - 1) / total);
  return lr * std::pow(decay, config_.power);
}

double PolynomialLR::closed_form_lr(std::size_t group) {
  const double total = lr::real(config_.total_iters);
  return base_lrs_[group] * std::pow(1.0 - lr::real(std::min(config_.total_iters, last_epoch_)) / total, config_.power);
}

}  // namespace fabric
