#include "strategies/fsdp/fsdp_settings.h"

#include <torch/nn.h>

#include <algorithm>
#include <map>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric {
namespace fsdp {
namespace {

void require_setting(const char* setting, const std::string& given, const std::vector<std::string>& valid) {
  if (std::find(valid.begin(), valid.end(), given) == valid.end())
    throw ConfigError(std::string("fsdp: ") + setting + " '" + given + "' is not known" + did_you_mean(given, valid));
}

std::optional<at::ScalarType> type_named(const char* setting, const std::string& name) {
  static const std::map<std::string, at::ScalarType> types = {
      {"fp16", at::kHalf},  {"float16", at::kHalf},  {"bf16", at::kBFloat16}, {"bfloat16", at::kBFloat16},
      {"fp32", at::kFloat}, {"float32", at::kFloat}, {"fp64", at::kDouble},   {"float64", at::kDouble}};
  if (name.empty()) return std::nullopt;
  auto found = types.find(name);
  if (found == types.end())
    throw ConfigError(std::string("fsdp: mixed_precision.") + setting + " '" + name + "' is not known" +
                      did_you_mean(name, {"fp16", "bf16", "fp32", "fp64"}));
  return found->second;
}

void require_any(const FSDPStrategy::Config& config, const torch::nn::Module& module) {
  for (const auto& item : module.named_modules())
    if (config.wrap_if(item.key(), *item.value())) return;
  throw ConfigError(
      "fsdp: wrap_if calls neither the model nor a module in it a unit. For one unit of all set auto_wrap_policy = "
      "\"none\" and "
      "leave wrap_if out; fabric::Unit takes the class that holds the parameters (BlockImpl, not Block)");
}

template <class... Layers>
bool is_any_of(const torch::nn::Module& module) {
  return (dynamic_cast<const Layers*>(&module) || ...);
}

}  // namespace

bool Types::keeps_type(const torch::nn::Module& layer) const {
  using namespace torch::nn;
  return is_any_of<BatchNorm1dImpl, BatchNorm2dImpl, BatchNorm3dImpl>(layer) ||
         (with_autocast &&
          is_any_of<LayerNormImpl, GroupNormImpl, InstanceNorm1dImpl, InstanceNorm2dImpl, InstanceNorm3dImpl>(layer));
}

Types types_of(const FSDPStrategy::Config& config, const std::string& precision) {
  const auto& given = config.mixed_precision;
  Types types{type_named("param_dtype", given.param_dtype),
              type_named("reduce_dtype", given.reduce_dtype),
              type_named("buffer_dtype", given.buffer_dtype),
              {},
              type_named("output_dtype", given.output_dtype)};
  if (given.cast_forward_inputs) types.inputs = types.params;
  const bool is_mixed = precision == "16-mixed" || precision == "bf16-mixed";
  if (!is_mixed) return types;
  // As in Python: autocast runs, and what it would cast is gathered in that type.
  auto low = precision == "16-mixed" ? at::kHalf : at::kBFloat16;
  if (!types.params) types.params = low;
  if (!types.reduction) types.reduction = low;
  types.inputs.reset();  // the precision converts them
  types.with_autocast = true;
  return types;
}

sharded::IsUnit unit_policy(const FSDPStrategy::Config& config, const torch::nn::Module& module) {
  if (config.wrap_if) {
    require_any(config, module);
    return config.wrap_if;
  }
  if (!config.wrap.empty()) return sharded::units_by_pattern(module, config.wrap);
  if (config.auto_wrap_policy == "size") return sharded::units_of_size(module, config.min_num_params);
  if (config.auto_wrap_policy == "none") return [](const std::string&, const torch::nn::Module&) { return false; };
  return sharded::blocks_of(module);
}

sharded::Settings::Backward backward_prefetch_of(const FSDPStrategy::Config& config) {
  using Backward = sharded::Settings::Backward;
  if (config.backward_prefetch == "none") return Backward::no_prefetch;
  return config.backward_prefetch == "BACKWARD_PRE" ? Backward::prefetch_before : Backward::prefetch_after;
}

int ranks_of_a_copy(const FSDPStrategy::Config& config, const RankInfo& ranks) {
  std::int64_t replicas = ranks.num_nodes, copy = ranks.local_world_size;
  if (config.device_mesh.empty() && replicas == 1 && copy > 1)
    throw ConfigError("fsdp: " + config.sharding_strategy +
                      " keeps a copy per node, and this job has one node; set device_mesh = [copies, ranks of a copy], "
                      "or sharding_strategy = FULL_SHARD");
  if (!config.device_mesh.empty()) {
    replicas = config.device_mesh[0];
    copy = config.device_mesh[1];
  }
  if (replicas * copy != ranks.world_size)
    throw ConfigError("fsdp: " + config.sharding_strategy + " over " + std::to_string(replicas) + " copies of " +
                      std::to_string(copy) + " ranks needs " + std::to_string(replicas * copy) +
                      " ranks, and there are " + std::to_string(ranks.world_size) +
                      "; set device_mesh = [copies, ranks of a copy]");
  return static_cast<int>(copy);
}

}  // namespace fsdp

void FSDPStrategy::Config::validate() const {
  using fsdp::require_setting;
  require_setting("sharding_strategy", sharding_strategy,
                  {"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"});
  require_setting("auto_wrap_policy", auto_wrap_policy, {"blocks", "size", "none"});
  require_setting("backward_prefetch", backward_prefetch, {"BACKWARD_PRE", "BACKWARD_POST", "none"});
  require_setting("start_method", start_method, {"auto", "popen", "copy", "spawn", "fork"});
  if (!state_dict_type.empty()) require_setting("state_dict_type", state_dict_type, {"full", "sharded"});
  if (min_num_params < 1)
    throw ConfigError("fsdp: min_num_params is " + std::to_string(min_num_params) + ", it must be at least 1");
  if (!wrap.empty() && wrap_if)
    throw ConfigError("fsdp: wrap and wrap_if both say which modules are units; leave one out");
  const bool is_hybrid = sharding_strategy.find("HYBRID") != std::string::npos;
  if (!device_mesh.empty() && !is_hybrid)
    throw ConfigError("fsdp: device_mesh is for HYBRID_SHARD and _HYBRID_SHARD_ZERO2, not for " + sharding_strategy);
  if (!device_mesh.empty() && (device_mesh.size() != 2 || device_mesh[0] < 1 || device_mesh[1] < 1))
    throw ConfigError("fsdp: device_mesh must be two positive numbers: copies, and ranks that share a copy");
  if (!use_orig_params)
    throw ConfigError(
        "fsdp: use_orig_params = false (one flat parameter per unit) is not there; parameters are always the module's "
        "own, each cut on its first dimension");
  fsdp::types_of(*this, "");
}

}  // namespace fabric
