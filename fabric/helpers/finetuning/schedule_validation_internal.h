#pragma once

#include <fabric/helpers/finetuning/finetuning_messages.h>
#include <fabric/helpers/finetuning/finetuning_schedule.h>
#include <fabric/helpers/finetuning/model_parameters.h>
#include <fabric/helpers/finetuning/schedule_reader.h>

namespace fabric {

/// Replaces every entry by the names of parameters it stands for: an exact name; the path of a module, for all
/// parameters below it; a pattern, matched at the start of names; `<rest>`. Aliases of tied weights are dropped with a
/// warning. Throws ConfigError for entries that stand for nothing, and for parameters thawed twice.
FABRIC_API void expand_schedule(FinetuningSchedule& schedule, const ModelParameters& parameters,
                                const ScheduleSource& source, const FinetuningMessages& messages);

/// The rules about when phases end. `deepest` is the last phase that will be trained. Throws ConfigError.
FABRIC_API void check_transitions(const FinetuningSchedule& schedule, std::size_t deepest, bool epoch_transitions_only,
                                  const ScheduleSource& source, const FinetuningMessages& messages);

}  // namespace fabric
