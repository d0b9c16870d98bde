#include <utility>

#include <c10/core/Device.h>

#include <fabric/base/log.h>
#include <fabric/plugins/precision/mixed_precision.h>
#include <fabric/plugins/precision/true_precision.h>
#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

using MakePrecision = std::function<std::shared_ptr<Precision>(const std::string& device_type)>;
using c10::ScalarType;

// A registered accelerator may have any name; what is no kind of device to LibTorch computes on the CPU.
c10::DeviceType device_type_of(const std::string& name) {
  try {
    return c10::Device(name).type();
  } catch (const c10::Error&) {
    return c10::DeviceType::CPU;
  }
}

std::shared_ptr<Precision> make_half_mixed(const std::string& device_type) {
  auto type = device_type_of(device_type);
  if (type == c10::DeviceType::CPU) {
    log::rank_zero_warn("precision 16-mixed is not supported on the CPU: bf16-mixed is used instead");
    return std::make_shared<MixedPrecision>(ScalarType::BFloat16, type);
  }
  return std::make_shared<MixedPrecision>(ScalarType::Half, type);
}

Registry<MakePrecision>& precision_registry() {
  static Registry<MakePrecision> all(
      "precision",
      {{"64-true", [](const std::string&) { return std::make_shared<DoublePrecision>(); }, "double throughout"},
       {"32-true", [](const std::string&) { return std::make_shared<Precision>(); }, "float throughout"},
       {"16-true", [](const std::string&) { return std::make_shared<HalfPrecision>(ScalarType::Half); },
        "half parameters and operators"},
       {"bf16-true", [](const std::string&) { return std::make_shared<HalfPrecision>(ScalarType::BFloat16); },
        "bfloat16 parameters and operators"},
       {"16-mixed", make_half_mixed, "float parameters, half operators, scaled gradients"},
       {"bf16-mixed",
        [](const std::string& device_type) {
          return std::make_shared<MixedPrecision>(ScalarType::BFloat16, device_type_of(device_type));
        },
        "float parameters, bfloat16 operators"}});
  return all;
}

std::string without_alias(const std::string& name) {
  if (name == "64" || name == "32") return name + "-true";
  if (name != "16" && name != "bf16") return name;
  log::rank_zero_warn("precision '" + name + "' is taken as '" + name + "-mixed'; write that, or '" + name +
                      "-true' when the parameters shall be 16-bit, too");
  return name + "-mixed";
}

}  // namespace

std::shared_ptr<Precision> make_precision(const std::string& given, const std::string& device_type) {
  std::string name = without_alias(lower_case(given));
  auto precision = precision_registry().get(name).value(device_type);
  if (!precision) throw MisuseError("the function registered for precision '" + name + "' returned null");
  return precision;
}

void register_precision(const std::string& name, MakePrecision make, bool override_existing, std::string description) {
  precision_registry().add(name, std::move(make), override_existing, std::move(description));
}

std::vector<std::string> available_precisions() { return precision_registry().names(); }

}  // namespace fabric
