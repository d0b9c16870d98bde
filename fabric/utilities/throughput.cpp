#include <fabric/utilities/throughput.h>

#include <cmath>

#include <fabric/base/error.h>

#include "fabric/utilities/terminal_internal.h"

namespace fabric {

Throughput::Throughput(Config config) : config_(std::move(config)) {
  auto positive = [](const char* name, double value) {
    if (!(value > 0))
      throw MisuseError(std::string("Throughput: ") + name + " must be above 0, given " +
                        terminal::exact_number(value));
  };
  positive("world_size", config_.world_size);
  // One update has no duration.
  positive("window_size - 1", config_.window_size - 1);
  if (config_.available_flops) positive("available_flops", *config_.available_flops);
  window_.reserve(config_.window_size);
}

const Throughput::Update& Throughput::newest() const { return window_[(next_ + window_.size() - 1) % window_.size()]; }

const Throughput::Update& Throughput::oldest() const {
  return window_[window_.size() < static_cast<std::size_t>(config_.window_size) ? 0 : next_ % window_.size()];
}

void Throughput::update(const Update& update) {
  auto fail = [](const std::string& what) { throw MisuseError("Throughput::update: " + what); };
  auto grows = [&](const char* name, double value, double last) {
    if (!(value > last))
      fail(std::string(name) + " is a total and must grow with each update: " + terminal::exact_number(value) +
           " after " + terminal::exact_number(last));
  };
  if (!std::isfinite(update.time)) fail("time must be finite");
  if (update.samples < update.batches)
    fail("samples (" + std::to_string(update.samples) + ") must be at least batches (" +
         std::to_string(update.batches) + ")");
  if (update.lengths && *update.lengths < update.samples)
    fail("lengths (" + std::to_string(*update.lengths) + ") must be at least samples (" +
         std::to_string(update.samples) + ")");
  if (update.flops && !(*update.flops >= 0)) fail("flops must be 0 or more");
  if (!window_.empty()) {
    const Update& last = newest();
    if (update.lengths.has_value() != last.lengths.has_value()) fail("give lengths always or never");
    if (update.flops.has_value() != last.flops.has_value()) fail("give flops always or never");
    grows("time", update.time, last.time);
    grows("batches", static_cast<double>(update.batches), static_cast<double>(last.batches));
    grows("samples", static_cast<double>(update.samples), static_cast<double>(last.samples));
    if (update.lengths) grows("lengths", static_cast<double>(*update.lengths), static_cast<double>(*last.lengths));
  }
  if (window_.size() < static_cast<std::size_t>(config_.window_size)) {
    window_.push_back(update);
    next_ = window_.size() % config_.window_size;
  } else {
    window_[next_] = update;
    next_ = (next_ + 1) % window_.size();
  }
}

Metrics Throughput::compute() const {
  if (window_.empty()) throw MisuseError("Throughput::compute was called before the first update");
  const Update& last = newest();
  Metrics metrics = {{"time", last.time},
                     {"batches", static_cast<double>(last.batches)},
                     {"samples", static_cast<double>(last.samples)}};
  if (last.lengths) metrics["lengths"] = static_cast<double>(*last.lengths);
  if (window_.size() < static_cast<std::size_t>(config_.window_size)) return metrics;

  const Update& first = oldest();
  double seconds = last.time - first.time;
  auto add = [&](const std::string& name, double amount) {
    metrics["device" + config_.separator + name] = amount / seconds;
    if (config_.world_size > 1) metrics[name] = amount / seconds * config_.world_size;
    return amount / seconds;
  };
  add("batches_per_sec", static_cast<double>(last.batches - first.batches));
  add("samples_per_sec", static_cast<double>(last.samples - first.samples));
  if (last.lengths) add("items_per_sec", static_cast<double>(*last.lengths - *first.lengths));
  if (last.flops) {
    // The first update's operations were done before the window's time began.
    double sum = -*first.flops;
    for (const auto& update : window_) sum += *update.flops;
    double rate = add("flops_per_sec", sum);
    if (config_.available_flops) metrics["device" + config_.separator + "mfu"] = rate / *config_.available_flops;
  }
  return metrics;
}

void Throughput::reset() {
  window_.clear();
  next_ = 0;
}

}  // namespace fabric
