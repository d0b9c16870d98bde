#include <fabric/helpers/spike_detection.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/tree_io.h>
#include <fabric/fabric.h>

#include "fabric/utilities/terminal_internal.h"

namespace fabric {
namespace {

double number_of(const Value& value) {
  if (value.is_number()) return value.as_double();
  const auto& tensor = value.as<at::Tensor>();
  if (tensor.numel() != 1)
    throw MisuseError("SpikeDetection: the loss must have one element, given " + to_string(value));
  return tensor.item<double>();
}

std::string spike_text(std::int64_t batch, double loss, double mean) {
  return "the loss jumped at batch " + std::to_string(batch) + ": " + terminal::exact_number(loss) +
         " on this rank, where the mean before was " + terminal::exact_number(mean) +
         ". The batch and the one before it were noted as batches to skip; go on from the last checkpoint without them";
}

}  // namespace

void SpikeDetection::Config::validate() const {
  if (mode != "min" && mode != "max") throw ConfigError("mode must be 'min' or 'max', given '" + mode + "'");
  if (window < 1) throw ConfigError("window must be 1 or more, given " + std::to_string(window));
  if (warmup < 0) throw ConfigError("warmup must be 0 or more, given " + std::to_string(warmup));
  if (!atol && !rtol && !finite_only) throw ConfigError("without atol, rtol and finite_only nothing is ever a spike");
}

SpikeDetection::SpikeDetection(Config config) : config_(std::move(config)) {
  config_.validate();
  on("on_train_batch_end", [this](Fabric& fabric, const Value::Map& arguments) {
    check(fabric, number_of(arguments.at("loss")), arguments.at("batch_idx").as_int());
  });
}

double SpikeDetection::mean() const {
  return window_.empty() ? std::nan("")
                         : std::accumulate(window_.begin(), window_.end(), 0.0) / static_cast<double>(window_.size());
}

// The value that it is compared with stays as it is; `take` moves it.
bool SpikeDetection::jumps(double loss) {
  const bool warm = seen_++ >= config_.warmup;
  if (!warm) return false;
  if (config_.finite_only && !std::isfinite(loss)) return true;
  const bool better = last_ && (config_.mode == "min" ? loss <= *last_ : loss >= *last_);
  if (better || window_.empty() || (!config_.atol && !config_.rtol)) return false;
  const double distance = std::abs(loss - mean());
  return (!config_.atol || distance >= std::abs(*config_.atol)) &&
         (!config_.rtol || distance >= std::abs(*config_.rtol * mean()));
}

// One value that is not finite would spoil the mean until it has left the window.
void SpikeDetection::take(double loss) {
  if (!std::isfinite(loss)) return;
  last_ = loss;
  window_.push_back(loss);
  if (window_.size() > static_cast<std::size_t>(config_.window)) window_.pop_front();
}

bool SpikeDetection::is_spike(double loss) {
  if (jumps(loss)) return true;
  take(loss);
  return false;
}

void SpikeDetection::check(Fabric& fabric, double loss, std::int64_t batch) {
  const double before = mean();
  auto& strategy = *fabric.strategy();
  if (strategy.reduce_boolean_decision(jumps(loss), false)) {
    if (fabric.is_global_zero()) note(batch);
    throw TrainingSpike(spike_text(batch, loss, before), batch);
  }
  if (config_.finite_only || strategy.reduce_boolean_decision(std::isfinite(loss), true)) take(loss);
}

void SpikeDetection::note(std::int64_t batch) const {
  const auto& path = config_.exclude_batches_path;
  Tree::List list;
  for (auto known : batches_to_skip(path)) list.emplace_back(known);
  for (auto index : {batch - 1, batch})
    if (index >= 0 && std::find(list.begin(), list.end(), Tree(index)) == list.end()) list.emplace_back(index);
  write_whole_file(path, write_json(Tree(list)) + "\n");
}

std::vector<std::int64_t> batches_to_skip(const std::filesystem::path& path) {
  std::vector<std::int64_t> batches;
  std::error_code error;
  const bool there = std::filesystem::exists(path, error);
  if (error) throw Error("the file of batches to skip, " + path.string() + ", cannot be read: " + error.message());
  if (!there) return batches;
  const Tree file = read_tree_file(path.string());
  for (const auto& item : file.as_list()) batches.push_back(item.as_int());
  return batches;
}

Value SpikeDetection::state_dict() const {
  Value::List values;
  for (double value : window_) values.push_back(value);
  return Value::Map{{"window", values}, {"last", last_ ? Value(*last_) : Value()}, {"seen", seen_}};
}

void SpikeDetection::load_state_dict(const Value& state) {
  std::deque<double> window;
  for (const auto& value : state.at("window").as_list()) window.push_back(value.as_double());
  while (window.size() > static_cast<std::size_t>(config_.window)) window.pop_front();
  const auto& last = state.at("last");
  seen_ = state.at("seen").as_int();
  last_ = last.is_null() ? std::nullopt : std::optional(last.as_double());
  window_ = std::move(window);
}

}  // namespace fabric
