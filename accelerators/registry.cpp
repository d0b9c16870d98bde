#include <algorithm>
#include <cctype>
#include <mutex>
#include <utility>

#include <fabric/accelerators/accelerator.h>
#include <fabric/accelerators/cpu.h>
#include <fabric/accelerators/cuda.h>
#include <fabric/nearest_name.h>

namespace fabric {
namespace {

using Make = std::function<std::shared_ptr<Accelerator>()>;

struct Registry {
  std::mutex mutex;
  std::vector<std::pair<std::string, Make>> makers;

  Make* find(const std::string& name) {
    for (auto& [known, make] : makers)
      if (known == name) return &make;
    return nullptr;
  }
};

Registry& registry() {
  static Registry all{.mutex = {},
                      .makers = {{"cpu", [] { return std::make_shared<CpuAccelerator>(); }},
                                 {"cuda", [] { return std::make_shared<CudaAccelerator>(); }}}};
  return all;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::shared_ptr<Accelerator> make_available(const std::string& name, const Make& make) {
  auto accelerator = make();
  if (!accelerator) throw MisuseError("the function registered for accelerator '" + name + "' returned null");
  if (!accelerator->is_available())
    throw UnavailableError("accelerator '" + name + "' cannot be used: " + accelerator->unavailable_reason() +
                           ". Available here: " + joined(available_accelerators()));
  return accelerator;
}

// A copy, so that the registry is not locked while an accelerator is made.
Make maker(const std::string& name) {
  std::lock_guard lock(registry().mutex);
  Make* make = registry().find(name);
  return make ? *make : Make();
}

[[noreturn]] void refuse(const std::string& given, const std::string& name) {
  for (const char* elsewhere : {"mps", "tpu", "xla"})
    if (name == elsewhere)
      throw UnavailableError("accelerator '" + given +
                             "' is not supported. Supported: " + joined(registered_accelerators()) +
                             "; available here: " + joined(available_accelerators()));
  auto valid = registered_accelerators();
  valid.insert(valid.end(), {"auto", "gpu"});
  throw ConfigError("there is no accelerator '" + given + "'" + did_you_mean(given, valid));
}

}  // namespace

std::shared_ptr<Accelerator> make_accelerator(const std::string& given) {
  std::string name = lower(given);
  if (name == "auto") {
    auto cuda = maker("cuda")();
    return cuda->is_available() ? cuda : make_accelerator("cpu");
  }
  if (name == "gpu") name = "cuda";
  auto make = maker(name);
  if (!make) refuse(given, name);
  return make_available(name, make);
}

void register_accelerator(const std::string& given, Make make, bool override_existing) {
  std::string name = lower(given);
  if (!make) throw MisuseError("register_accelerator('" + given + "') was given an empty function");
  if (name.empty() || name == "auto" || name == "gpu")
    throw ConfigError("'" + given + "' cannot be the name of an accelerator: it is reserved");
  std::lock_guard lock(registry().mutex);
  if (Make* known = registry().find(name)) {
    if (!override_existing)
      throw ConfigError("accelerator '" + name + "' is registered already; pass override_existing=true to replace it");
    *known = std::move(make);
  } else {
    registry().makers.emplace_back(name, std::move(make));
  }
}

std::vector<std::string> registered_accelerators() {
  std::lock_guard lock(registry().mutex);
  std::vector<std::string> names;
  for (const auto& [name, make] : registry().makers) names.push_back(name);
  return names;
}

std::vector<std::string> available_accelerators() {
  std::vector<std::string> names;
  for (const auto& name : registered_accelerators()) {
    auto accelerator = maker(name)();
    if (accelerator && accelerator->is_available()) names.push_back(name);
  }
  return names;
}

}  // namespace fabric
