#include <fabric/helpers/lr/cosine_lr.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "fabric/helpers/lr/lr_values_internal.h"

// Each formula does its operations in the order in which torch.optim.lr_scheduler does them.
namespace fabric {
namespace {

constexpr double kPi = std::numbers::pi;

}  // namespace

void CosineAnnealingLRConfig::validate() const {
  if (!T_max) throw ConfigError("CosineAnnealingLR: T_max must be given, the epochs down to the lowest learning rate");
  if (*T_max < 1) throw ConfigError("CosineAnnealingLR: T_max must be 1 or more, given " + std::to_string(*T_max));
}

CosineAnnealingLR::CosineAnnealingLR(torch::optim::Optimizer& optimizer, Config config)
    : ConfiguredLR(optimizer, std::move(config)) {
  start(config_.last_epoch);
}

double CosineAnnealingLR::next_lr(std::size_t group, double lr) {
  if (is_initial()) return lr;
  const std::int64_t t_max = *config_.T_max;
  const double eta_min = config_.eta_min;
  // At the lowest point the quotient below would be 0 / 0.
  if ((last_epoch_ - 1 - t_max) % (2 * t_max) == 0)
    return lr + (base_lrs_[group] - eta_min) * (1 - std::cos(kPi / lr::real(t_max))) / 2;
  return (1 + std::cos(kPi * lr::real(last_epoch_) / lr::real(t_max))) /
             (1 + std::cos(kPi * lr::real(last_epoch_ - 1) / lr::real(t_max))) * (lr - eta_min) +
         eta_min;
}

double CosineAnnealingLR::closed_form_lr(std::size_t group) {
  return config_.eta_min + (base_lrs_[group] - config_.eta_min) *
                               (1 + std::cos(kPi * lr::real(last_epoch_) / lr::real(*config_.T_max))) / 2;
}

void CosineAnnealingWarmRestartsConfig::validate() const {
  if (!T_0) throw ConfigError("CosineAnnealingWarmRestarts: T_0 must be given, the epochs until the first restart");
  if (*T_0 < 1) throw ConfigError("CosineAnnealingWarmRestarts: T_0 must be 1 or more, given " + std::to_string(*T_0));
  if (T_mult < 1)
    throw ConfigError("CosineAnnealingWarmRestarts: T_mult must be 1 or more, given " + std::to_string(T_mult));
}

CosineAnnealingWarmRestarts::CosineAnnealingWarmRestarts(torch::optim::Optimizer& optimizer, Config config)
    : ConfiguredLR(optimizer, std::move(config)),
      in_round_(lr::real(config_.last_epoch)),
      round_(lr::real(*config_.T_0)) {
  if (config_.last_epoch > 0) {
    const Place place = place_of(in_round_);
    in_round_ = place.in_round, round_ = place.round;
  }
  start(config_.last_epoch);
}

double CosineAnnealingWarmRestarts::next_lr(std::size_t group, double) {
  return config_.eta_min + (base_lrs_[group] - config_.eta_min) * (1 + std::cos(kPi * in_round_ / round_)) / 2;
}

// Rounds of T_0, T_0 * T_mult, T_0 * T_mult^2 … epochs: n of them end at T_0 * (T_mult^n - 1) / (T_mult - 1).
CosineAnnealingWarmRestarts::Place CosineAnnealingWarmRestarts::place_of(double epoch) const {
  const double first = lr::real(*config_.T_0), mult = lr::real(config_.T_mult);
  if (epoch < first) return {epoch, first};
  if (config_.T_mult == 1) return {std::fmod(epoch, first), first};
  auto end_of = [&](double n) { return first * (std::pow(mult, n) - 1) / (mult - 1); };
  double n = std::trunc(std::log(epoch / first * (mult - 1) + 1) / std::log(mult));
  if (end_of(n + 1) <= epoch) ++n;  // where the logarithm fell a last digit short of a whole number
  return {epoch - end_of(n), first * std::pow(mult, n)};
}

void CosineAnnealingWarmRestarts::enter(std::int64_t last_epoch, Place place) {
  auto before = std::pair(std::exchange(in_round_, place.in_round), std::exchange(round_, place.round));
  try {
    update(last_epoch, false);
  } catch (...) {
    std::tie(in_round_, round_) = before;
    throw;
  }
}

void CosineAnnealingWarmRestarts::start_over() {
  in_round_ = -1;
  round_ = lr::real(*config_.T_0);
  start(-1);
}

void CosineAnnealingWarmRestarts::advance(std::optional<double>) {
  if (last_epoch_ < 0) return step_to(0);
  double in_round = in_round_ + 1, round = round_;
  if (in_round >= round) {
    in_round = std::fmod(in_round, round);
    round *= lr::real(config_.T_mult);
  }
  enter(last_epoch_ + 1, {in_round, round});
}

void CosineAnnealingWarmRestarts::step_to(double epoch) {
  if (!(epoch >= 0))
    throw MisuseError("CosineAnnealingWarmRestarts: step_to takes an epoch of 0 or more, given " +
                      std::to_string(epoch));
  enter(static_cast<std::int64_t>(std::floor(epoch)), place_of(epoch));
}

void CosineAnnealingWarmRestarts::save_fields(Value& state) const {
  ConfiguredLR::save_fields(state);
  state["T_cur"] = in_round_;
  state["T_i"] = round_;
}

void CosineAnnealingWarmRestarts::load_fields(const Value& state) {
  const double in_round = state.at("T_cur").as_double(), round = state.at("T_i").as_double();
  ConfiguredLR::load_fields(state);
  in_round_ = in_round, round_ = round;
}

}  // namespace fabric
