#pragma once

#include <filesystem>
#include <string>

#include <fabric/base/tree_io.h>
#include <fabric/helpers/finetuning/finetuning_messages.h>
#include <fabric/helpers/finetuning/finetuning_schedule.h>
#include <fabric/helpers/peers.h>

namespace fabric {

/// A schedule as its author wrote it, with what errors about it need to know.
struct FABRIC_API ScheduleSource {
  Tree tree;
  /// The file, or "ft_schedule" for a map from memory.
  std::string name = "ft_schedule";
  TreeLines lines;
  /// Where a mended schedule goes, and whether this process writes it.
  std::filesystem::path mended;
  bool writes = true;

  /// "bert.yaml:12: " for an entry given by its dotted path, "ft_schedule: " for a map.
  std::string at(const std::string& path) const;
  /// Writes the mended schedule; the end of an error that says where it is.
  std::string offer_mended(const Tree& schedule) const;
};

/// Reads a YAML or JSON file on rank 0 for all ranks, or takes a map. Throws ConfigError on every rank.
FABRIC_API ScheduleSource load_schedule_source(const Tree& ft_schedule, const Peers& peers);

/// The phases, in order. Checks what can be checked without the model: keys, kinds of values, what phase 0 may not
/// have. Throws ConfigError; where the schedule can be mended, the mended one is written and named.
FABRIC_API FinetuningSchedule read_schedule(const ScheduleSource& source, const FinetuningMessages& messages);

}  // namespace fabric
