#include <fabric/helpers/throughput_monitor.h>

#include <ATen/Context.h>

#include <fabric/base/log.h>
#include <fabric/fabric.h>

namespace fabric {
namespace {

// Whether float32 products may be computed in TF32. LibTorch has an older and a newer setting for that and throws where
// they contradict each other.
bool allows_tf32() {
  try {
    return at::globalContext().allowTF32CuBLAS();
  } catch (const c10::Error&) {
    return false;
  }
}

std::optional<double> peak_of(const Fabric& fabric) {
  const auto precision = fabric.precision()->name();
  const auto device = fabric.accelerator()->device_name(fabric.device());
  if (device.empty()) return std::nullopt;
  const std::string dtype = precision.starts_with("bf16") ? "bfloat16"
                            : precision.starts_with("16") ? "float16"
                            : precision.starts_with("64") ? "float64"
                                                          : "float32";
  std::optional<double> peak;
  if (dtype == "float32" && allows_tf32()) peak = peak_flops(device, "tf32");
  if (!peak) peak = peak_flops(device, dtype);
  if (!peak)
    log::warn_once("the peak of '" + device + "' for " + dtype +
                   " is not known, so that there will be no mfu. Set available_flops from its data sheet");
  return peak;
}

}  // namespace

ThroughputMonitor::ThroughputMonitor(const Fabric& fabric, Config config)
    : fabric_(&fabric),
      available_flops_(config.available_flops ? config.available_flops : peak_of(fabric)),
      throughput_({.available_flops = available_flops_,
                   .world_size = fabric.world_size(),
                   .window_size = config.window_size,
                   .separator = config.separator}) {}

void ThroughputMonitor::update(const Throughput::Update& update) {
  if (fabric_->is_global_zero()) throughput_.update(update);
  ++updates_;
}

Metrics ThroughputMonitor::compute_and_log(std::optional<std::int64_t> step) {
  if (!fabric_->is_global_zero()) return {};
  auto metrics = throughput_.compute();
  std::map<std::string, Value> values(metrics.begin(), metrics.end());
  fabric_->log_dict(values, step.value_or(updates_ - 1));
  return metrics;
}

void ThroughputMonitor::reset() {
  throughput_.reset();
  updates_ = 0;
}

}  // namespace fabric
