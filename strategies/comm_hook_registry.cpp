#include <fabric/nearest_name.h>
#include <fabric/strategies/ddp_comm_hooks.h>

#include <algorithm>
#include <mutex>

#include "strategies/bucket_hooks.h"
#include "strategies/powersgd_hook.h"

namespace fabric {
namespace {

struct Entry {
  std::string name;
  CommHookFactory factory;
};

void refuse_settings(const std::string& name, const Tree& params) {
  if (params.is_map() && !params.as_map().empty())
    throw ConfigError("communication hook " + name + " has no settings; given: " + params.as_map().begin()->first);
}

CommHookFactory plain(const std::string& name, std::function<std::shared_ptr<CommHook>(const ProcessGroup&)> make) {
  return [name, make = std::move(make)](const ProcessGroup& group, const Tree& params) {
    refuse_settings(name, params);
    return make(group);
  };
}

std::vector<Entry> built_in() {
  auto compress = [](at::ScalarType type) {
    return [type](const ProcessGroup& group) { return std::make_shared<ddp::CompressHook>(group, type); };
  };
  return {
      {"allreduce", plain("allreduce", [](const ProcessGroup& g) { return std::make_shared<ddp::AllReduceHook>(g); })},
      {"fp16_compress", plain("fp16_compress", compress(at::kHalf))},
      {"bf16_compress", plain("bf16_compress", compress(at::kBFloat16))},
      {"powersgd", ddp::make_powersgd},
  };
}

std::mutex& lock() {
  static std::mutex mutex;
  return mutex;
}

std::vector<Entry>& entries() {
  static std::vector<Entry> all = built_in();
  return all;
}

}  // namespace

void register_comm_hook(const std::string& name, CommHookFactory factory, bool override_existing) {
  if (name.empty() || !factory) throw ConfigError("a communication hook needs a name and a factory");
  std::lock_guard guard(lock());
  for (auto& entry : entries()) {
    if (entry.name != name) continue;
    if (!override_existing)
      throw ConfigError("a communication hook named '" + name +
                        "' exists already; pass override_existing to replace it");
    entry.factory = std::move(factory);
    return;
  }
  entries().push_back({name, std::move(factory)});
}

std::vector<std::string> available_comm_hooks() {
  std::lock_guard guard(lock());
  std::vector<std::string> names;
  for (const auto& entry : entries()) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  return names;
}

std::shared_ptr<CommHook> make_comm_hook(const Choice& choice, const std::string& wrapper, const ProcessGroup& group) {
  CommHookFactory factory;
  {
    std::lock_guard guard(lock());
    for (const auto& entry : entries())
      if (entry.name == choice.name) factory = entry.factory;
  }
  if (!factory)
    throw ConfigError("unknown communication hook '" + choice.name + "'" +
                      did_you_mean(choice.name, available_comm_hooks()));
  auto hook = factory(group, Tree(choice.params));
  if (!hook) throw MisuseError("the factory of communication hook '" + choice.name + "' returned nothing");
  if (wrapper.empty()) return hook;
  if (wrapper == "fp16") return std::make_shared<ddp::CastWrapper>(std::move(hook), at::kHalf);
  if (wrapper == "bf16") return std::make_shared<ddp::CastWrapper>(std::move(hook), at::kBFloat16);
  throw ConfigError("comm_hook_wrapper must be \"\", \"fp16\" or \"bf16\"; given '" + wrapper + "'" +
                    did_you_mean(wrapper, {"fp16", "bf16"}));
}

}  // namespace fabric
