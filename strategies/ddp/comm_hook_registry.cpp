#include <fabric/strategies/ddp_comm_hooks.h>
#include "fabric/base/registry/registry_internal.h"

#include "strategies/ddp/bucket_hooks.h"
#include "strategies/ddp/powersgd_hook.h"

namespace fabric {
namespace {

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

Registry<CommHookFactory>& comm_hook_registry() {
  auto compress = [](at::ScalarType type) {
    return [type](const ProcessGroup& group) { return std::make_shared<ddp::CompressHook>(group, type); };
  };
  static Registry<CommHookFactory> all(
      "communication hook",
      {{"allreduce", plain("allreduce", [](const ProcessGroup& g) { return std::make_shared<ddp::AllReduceHook>(g); }),
        "the mean over the ranks"},
       {"fp16_compress", plain("fp16_compress", compress(at::kHalf)), "sent as half"},
       {"bf16_compress", plain("bf16_compress", compress(at::kBFloat16)), "sent as bfloat16"},
       {"powersgd", ddp::make_powersgd, "sent as products of thin matrices"}});
  return all;
}

}  // namespace

void register_comm_hook(const std::string& name, CommHookFactory factory, bool override_existing,
                        std::string description) {
  comm_hook_registry().add(name, std::move(factory), override_existing, std::move(description));
}

std::vector<std::string> available_comm_hooks() { return comm_hook_registry().names(); }

std::shared_ptr<CommHook> make_comm_hook(const Choice& choice, const std::string& wrapper, const ProcessGroup& group) {
  auto hook = comm_hook_registry().get(choice.name).value(group, Tree(choice.params));
  if (!hook) throw MisuseError("the factory of communication hook '" + choice.name + "' returned nothing");
  if (wrapper.empty()) return hook;
  if (wrapper == "fp16") return std::make_shared<ddp::CastWrapper>(std::move(hook), at::kHalf);
  if (wrapper == "bf16") return std::make_shared<ddp::CastWrapper>(std::move(hook), at::kBFloat16);
  throw ConfigError("comm_hook_wrapper must be \"\", \"fp16\" or \"bf16\"; given '" + wrapper + "'" +
                    did_you_mean(wrapper, {"fp16", "bf16"}));
}

}  // namespace fabric
