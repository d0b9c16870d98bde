#include "fabric/base/registry/registry_internal.h"

#include <algorithm>

namespace fabric {
namespace {

struct AllRegistries {
  std::mutex mutex;
  std::vector<const AnyRegistry*> all;
  // Never destroyed: registries are, when the process ends, and take themselves out.
  static AllRegistries& get() {
    static auto* one = new AllRegistries;
    return *one;
  }
};

}  // namespace

void AnyRegistry::enlist() {
  auto& registries = AllRegistries::get();
  std::lock_guard lock(registries.mutex);
  registries.all.push_back(this);
}

void AnyRegistry::delist() {
  auto& registries = AllRegistries::get();
  std::lock_guard lock(registries.mutex);
  std::erase(registries.all, this);
}

NameRule class_names(std::vector<std::string> prefixes) {
  return {.key = [](const std::string& name) { return name; },
          .candidates =
              [prefixes = std::move(prefixes)](const std::string& name) {
                std::vector<std::string> keys{name};
                for (const auto& prefix : prefixes)
                  if (name.starts_with(prefix)) keys.push_back(name.substr(prefix.size()));
                return keys;
              }};
}

std::vector<PartList> registered_parts() {
  std::vector<PartList> lists;
  {
    auto& registries = AllRegistries::get();
    std::lock_guard lock(registries.mutex);
    for (const auto* registry : registries.all) lists.push_back(registry->list());
  }
  std::sort(lists.begin(), lists.end(), [](const auto& a, const auto& b) { return a.kind < b.kind; });
  return lists;
}

}  // namespace fabric
