#pragma once

#include <string>

#include <fabric/helpers/finetuning/finetuning_messages.h>
#include <fabric/helpers/lr/lr_scheduler.h>

namespace fabric {

/// Whether this class (or one derived from it) is known to go well with groups that are added while training.
FABRIC_API bool is_supported(const LRScheduler& scheduler);
/// Throws ConfigError for another class, or warns with `allow_untested`.
FABRIC_API void require_supported(const LRScheduler& scheduler, bool allow_untested, const std::string& where,
                                  const FinetuningMessages& messages);

}  // namespace fabric
