#pragma once

#include <optional>
#include <string>

#include <c10/core/ScalarType.h>

#include <fabric/base/rank_info.h>
#include <fabric/strategies/fsdp.h>

#include "strategies/sharded/unit.h"
#include "strategies/sharded/unit_plan.h"

namespace fabric::fsdp {

/// In which types what travels and what is computed; empty: as it is.
struct Types {
  std::optional<at::ScalarType> params, reduction, buffers, inputs, outputs;
  /// Layers whose parameters keep their own type: batch norms, and all normalisation where autocast runs, which gives
  /// these layers 32-bit numbers.
  bool keeps_type(const torch::nn::Module& layer) const;
  bool with_autocast = false;
};
/// Of the settings, and of the precision where they are silent.
Types types_of(const FSDPStrategy::Config& config, const std::string& precision);
sharded::IsUnit unit_policy(const FSDPStrategy::Config& config, const torch::nn::Module& module);
sharded::Settings::Backward backward_prefetch_of(const FSDPStrategy::Config& config);
/// How many ranks hold one copy of the model together under the hybrid strategies. Throws ConfigError for a mesh that
/// does not fit the ranks.
int ranks_of_a_copy(const FSDPStrategy::Config& config, const RankInfo& ranks);

}  // namespace fabric::fsdp
