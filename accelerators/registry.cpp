#include <utility>

#include <fabric/accelerators/accelerator.h>
#include <fabric/accelerators/cpu.h>
#include <fabric/accelerators/cuda.h>

#include "fabric/base/registry/registry_internal.h"

namespace fabric {
namespace {

using MakeAccelerator = std::function<std::shared_ptr<Accelerator>()>;

Registry<MakeAccelerator>& accelerator_registry() {
  static Registry<MakeAccelerator> all(
      "accelerator", {{"cpu", [] { return std::make_shared<CpuAccelerator>(); }, "the host's processors"},
                      {"cuda", [] { return std::make_shared<CudaAccelerator>(); }, "NVIDIA GPUs"}});
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::shared_ptr<Accelerator> make_available(const std::string& name, const MakeAccelerator& make) {
  auto accelerator = make();
  if (!accelerator) throw MisuseError("the function registered for accelerator '" + name + "' returned null");
  if (!accelerator->is_available())
    throw UnavailableError("accelerator '" + name + "' cannot be used: " + accelerator->unavailable_reason() +
                           ". Available here: " + joined(available_accelerators()));
  return accelerator;
}

void refuse_absent(const std::string& given, const std::string& name) {
  for (const char* elsewhere : {"mps", "tpu", "xla"})
    if (name == elsewhere)
      throw UnavailableError("accelerator '" + given +
                             "' is not supported. Supported: " + joined(registered_accelerators()) +
                             "; available here: " + joined(available_accelerators()));
}

}  // namespace

std::shared_ptr<Accelerator> make_accelerator(const std::string& given) {
  std::string name = lower_case(given);
  if (name == "auto") {
    auto cuda = accelerator_registry().get("cuda").value();
    return cuda->is_available() ? cuda : make_accelerator("cpu");
  }
  if (name == "gpu") name = "cuda";
  if (!accelerator_registry().contains(name)) refuse_absent(given, name);
  return make_available(name, accelerator_registry().get(name, {"auto", "gpu"}).value);
}

void register_accelerator(const std::string& given, MakeAccelerator make, bool override_existing,
                          std::string description) {
  std::string name = lower_case(given);
  if (name == "auto" || name == "gpu")
    throw ConfigError("'" + given + "' cannot be the name of an accelerator: it is reserved");
  accelerator_registry().add(name, std::move(make), override_existing, std::move(description));
}

std::vector<std::string> registered_accelerators() { return accelerator_registry().names(); }

std::vector<std::string> available_accelerators() {
  std::vector<std::string> names;
  for (const auto& name : registered_accelerators()) {
    auto accelerator = accelerator_registry().get(name).value();
    if (accelerator && accelerator->is_available()) names.push_back(name);
  }
  return names;
}

}  // namespace fabric
