#include <fabric/helpers/early_stopping.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>

namespace fabric {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string three_decimals(double value) {
  char text[400];  // the largest double has 309 digits
  std::snprintf(text, sizeof(text), "%.3f", value);
  return text;
}

std::string shortest_score(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

bool same_number(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

std::string names_of(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) text += (i ? ", " : "") + std::to_string(ranks[i]);
  return text;
}

}  // namespace

void EarlyStopping::Config::validate() const {
  if (monitor.empty())
    throw ConfigError("EarlyStopping: monitor must be given, the name of the metric to watch, such as \"val_loss\"");
  if (mode != "min" && mode != "max")
    throw ConfigError("EarlyStopping: mode must be 'min' or 'max', given '" + mode + "'" +
                      did_you_mean(mode, {"min", "max"}));
  if (patience < 0) throw ConfigError("EarlyStopping: patience must be 0 or more, given " + std::to_string(patience));
  if (std::isnan(min_delta)) throw ConfigError("EarlyStopping: min_delta is NaN");
  if ((stopping_threshold && std::isnan(*stopping_threshold)) ||
      (divergence_threshold && std::isnan(*divergence_threshold)))
    throw ConfigError("EarlyStopping: a threshold is NaN, which no metric can reach");
}

EarlyStopping::EarlyStopping(Config config, Peers peers) : config_(std::move(config)), peers_(std::move(peers)) {
  config_.validate();
  best_score_ = config_.mode == "min" ? kInfinity : -kInfinity;
}

bool EarlyStopping::improves(double value) const {
  const double delta = std::abs(config_.min_delta);
  if (delta == 0 || !std::isfinite(best_score_)) return better(value, best_score_);
  // Decimal numbers such as 0.8 - 0.7 miss 0.1 by a rounding error, which must not decide.
  const double gain = config_.mode == "min" ? best_score_ - value : value - best_score_;
  const double rounding = 4 * std::numeric_limits<double>::epsilon() * std::max(std::abs(best_score_), std::abs(value));
  return gain - delta > rounding;
}

EarlyStopping::Finding EarlyStopping::judge(const Metrics& metrics) const {
  auto found = metrics.find(config_.monitor);
  if (found == metrics.end()) return {};
  const double value = found->second;
  const std::string is = config_.monitor + " = " + shortest_score(value);
  const bool min = config_.mode == "min";
  if (config_.check_finite && !std::isfinite(value))
    return {Finding::stop, Reason::non_finite_metric, value,
            is + " is not finite; the best value before was " + three_decimals(best_score_) + ". Stopping"};
  if (config_.stopping_threshold && better(value, *config_.stopping_threshold))
    return {Finding::stop, Reason::stopping_threshold, value,
            "stopping threshold reached: " + is + (min ? " < " : " > ") + shortest_score(*config_.stopping_threshold) +
                ". Stopping"};
  if (config_.divergence_threshold && better(*config_.divergence_threshold, value))
    return {Finding::stop, Reason::divergence_threshold, value,
            "divergence threshold reached: " + is + (min ? " > " : " < ") +
                shortest_score(*config_.divergence_threshold) + ". Stopping"};
  if (improves(value)) {
    std::string message = config_.monitor + " improved";
    if (std::isfinite(best_score_))
      message += " by " + three_decimals(std::abs(best_score_ - value)) +
                 " (min_delta = " + three_decimals(std::abs(config_.min_delta)) + ")";
    return {Finding::improved, Reason::not_stopped, value, message + ". New best score: " + three_decimals(value)};
  }
  if (wait_count_ + 1 < config_.patience) return {Finding::waiting, Reason::not_stopped, value, ""};
  const std::string message = config_.monitor + " did not improve in the last " + std::to_string(wait_count_ + 1) +
                              " checks. Best score: " + three_decimals(best_score_) + ". ";
  if (!final_phase_) return {Finding::phase_complete, Reason::not_stopped, value, message + "The phase is complete"};
  return {Finding::stop, Reason::patience_exhausted, value, message + "Stopping"};
}

// One exchange: every rank learns what all found and comes to the same end.
EarlyStopping::Finding EarlyStopping::agree(Finding mine) {
  if (peers_.is_alone()) return mine;
  auto all = peers_.gather(Value::Map{{"kind", static_cast<std::int64_t>(mine.kind)},
                                      {"reason", static_cast<std::int64_t>(mine.reason)},
                                      {"value", mine.value},
                                      {"message", mine.message}});
  std::vector<int> without;
  std::size_t decisive = 0, differs = 0;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const auto kind = all[rank].at("kind").as_int();
    if (kind == Finding::missing) without.push_back(static_cast<int>(rank));
    if (kind > all[decisive].at("kind").as_int()) decisive = rank;
    if (!same_number(all[rank].at("value").as_double(), all[0].at("value").as_double())) differs = rank;
  }
  if (!without.empty()) {
    const bool everywhere = without.size() == all.size();
    if (config_.strict && !everywhere)
      throw MisuseError("EarlyStopping: the metric '" + config_.monitor + "' is missing on " + names_of(without) +
                        " of " + std::to_string(all.size()) + "; every rank must give it at each check");
    if (!everywhere && std::exchange(warned_, true) == false)
      log::rank_zero_warn("EarlyStopping: the metric '" + config_.monitor + "' is missing on " + names_of(without) +
                          " of " + std::to_string(all.size()) + "; such checks are left out on every rank");
    return {};
  }
  if (differs && std::exchange(warned_, true) == false)
    log::rank_zero_warn("EarlyStopping: '" + config_.monitor + "' differs between the ranks (" +
                        shortest_score(all[0].at("value").as_double()) + " on rank 0, " +
                        shortest_score(all[differs].at("value").as_double()) + " on rank " + std::to_string(differs) +
                        "). Each rank judges its own number, and one that wants to stop stops all; give every rank " +
                        "the same, with MeanMetric or fabric.all_reduce");
  const auto kind = static_cast<Finding::Kind>(all[decisive].at("kind").as_int());
  if (kind < Finding::phase_complete) return mine;
  const bool unanimous =
      std::all_of(all.begin(), all.end(), [&](const Value& other) { return other.at("kind").as_int() == kind; });
  if (!unanimous)
    log::rank_zero_warn("EarlyStopping: the ranks disagree; all follow rank " + std::to_string(decisive) + ": " +
                        all[decisive].at("message").as_string());
  return {kind, static_cast<Reason>(all[decisive].at("reason").as_int()), mine.value,
          all[decisive].at("message").as_string()};
}

void EarlyStopping::take(const Finding& finding, int epoch) {
  switch (finding.kind) {
    case Finding::missing:
      return;
    case Finding::improved:
      best_score_ = finding.value;
      wait_count_ = 0;
      break;
    case Finding::waiting:
      ++wait_count_;
      break;
    case Finding::phase_complete:
      phase_complete_ = true;
      wait_count_ = 0;
      break;
    case Finding::stop:
      if (finding.reason == Reason::patience_exhausted) ++wait_count_;
      reason_ = finding.reason;
      stopped_epoch_ = epoch;
      break;
  }
  message_ = finding.message;
}

bool EarlyStopping::check(const Metrics& metrics, int epoch, Moment moment) {
  const Moment wanted =
      config_.check_on_train_epoch_end.value_or(false) ? Moment::train_epoch_end : Moment::validation_end;
  if (stopped() || (moment != Moment::any && moment != wanted)) return stopped();
  const Finding finding = agree(judge(metrics));
  if (finding.kind == Finding::missing && config_.strict) throw_missing(metrics);
  take(finding, epoch >= 0 ? epoch : static_cast<int>(checks_));
  ++checks_;
  if (!config_.verbose) return stopped();
  const std::string text = finding.kind == Finding::missing
                               ? "EarlyStopping: the metric '" + config_.monitor + "' is missing; the check is left out"
                               : "EarlyStopping: " + finding.message;
  if (finding.kind == Finding::missing)
    log::rank_zero_warn(text);
  else if (!finding.message.empty() && (!config_.log_rank_zero_only || peers_.rank() == 0))
    log::info(text);
  return stopped();
}

void EarlyStopping::throw_missing(const Metrics& metrics) const {
  std::vector<std::string> names;
  for (const auto& [name, value] : metrics) names.push_back(name);
  throw MisuseError("EarlyStopping: there is no metric '" + config_.monitor + "'" +
                    did_you_mean(config_.monitor, names) +
                    ". Set monitor to one of them, or strict to false to leave such checks out");
}

void EarlyStopping::resume() {
  reason_ = Reason::not_stopped;
  stopped_epoch_ = -1;
  wait_count_ = 0;
  message_.clear();
}

void EarlyStopping::reset_phase() {
  phase_complete_ = false;
  wait_count_ = 0;
}

Value EarlyStopping::state_dict() const {
  return Value::Map{{"monitor", config_.monitor},
                    {"wait_count", wait_count_},
                    {"checks", checks_},
                    {"stopped_epoch", stopped_epoch_},
                    {"best_score", best_score_},
                    {"patience", config_.patience},
                    {"stopping_reason", static_cast<std::int64_t>(reason_)},
                    {"stopping_reason_message", message_},
                    {"phase_complete", phase_complete_},
                    {"final_phase", final_phase_}};
}

void EarlyStopping::load_state_dict(const Value& state) {
  EarlyStopping loaded(config_, peers_);
  try {
    loaded.wait_count_ = state.at("wait_count").as_int();
    loaded.checks_ = state.at("checks").as_int();
    loaded.stopped_epoch_ = static_cast<int>(state.at("stopped_epoch").as_int());
    loaded.best_score_ = state.at("best_score").as_double();
    loaded.config_.patience = state.at("patience").as_int();
    const auto reason = state.at("stopping_reason").as_int();
    if (reason < 0 || reason > static_cast<std::int64_t>(Reason::non_finite_metric))
      throw MisuseError("stopping_reason is " + std::to_string(reason));
    loaded.reason_ = static_cast<Reason>(reason);
    loaded.message_ = state.at("stopping_reason_message").as_string();
    loaded.phase_complete_ = state.at("phase_complete").as_bool();
    loaded.final_phase_ = state.at("final_phase").as_bool();
    loaded.config_.validate();
  } catch (const Error& error) {
    throw CheckpointKeyError(std::string("the state of EarlyStopping is damaged: ") + error.what());
  }
  if (const Value* monitor = state.find("monitor");
      monitor && monitor->is_string() && monitor->as_string() != config_.monitor)
    log::rank_zero_warn("EarlyStopping: the state was saved while '" + monitor->as_string() +
                        "' was watched, now it is '" + config_.monitor +
                        "'; its best score is taken over all the same");
  *this = std::move(loaded);
}

}  // namespace fabric
