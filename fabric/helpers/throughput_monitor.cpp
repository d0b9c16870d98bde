#include <fabric/helpers/throughput_monitor.h>

#include <fabric/fabric.h>

namespace fabric {
namespace {

std::optional<double> peak_of(const Fabric& fabric) {
  auto precision = fabric.precision()->name();
  const char* dtype = precision.rfind("bf16", 0) == 0 ? "bfloat16"
                      : precision.rfind("16", 0) == 0 ? "float16"
                      : precision.rfind("32", 0) == 0 ? "float32"
                                                      : "";
  return peak_flops(fabric.accelerator()->device_name(fabric.device()), dtype);
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
