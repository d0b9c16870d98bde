#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <fabric/base/tree.h>
#include <fabric/export.h>

namespace fabric {

class ModelParameters;

/// One phase: what is thawed when it begins, and when it ends.
struct FABRIC_API FinetuningPhase {
  /// As written: exact parameter names, module paths, patterns (PythonRegex) or `<rest>`. Once the schedule is
  /// expanded: parameter names.
  std::vector<std::string> params = {};
  /// The phase runs epochs before this one only; -1: no limit.
  int max_transition_epoch = -1;
  /// The phase ends once that many steps of the whole run are done; -1: no limit.
  std::int64_t max_transition_step = -1;
  /// Learning rate of the groups added (phases from 1 on); empty: the scheduler's base_max_lr.
  std::optional<double> lr = {};
  /// Multiplies the learning rate of the groups that are there already, when the phase begins.
  std::optional<double> scale_lr = {};
  /// Entries, written like `params`, of parameters thawed earlier that are frozen again when the phase begins.
  std::vector<std::string> freeze = {};
  /// Settings of a new optimizer and of a new learning-rate scheduler for this phase on; null: the present ones stay.
  Tree new_optimizer = {};
  Tree new_lr_scheduler = {};

  bool operator==(const FinetuningPhase&) const = default;
};

/// Phases, from the first trained to the last.
struct FABRIC_API FinetuningSchedule {
  std::vector<FinetuningPhase> phases;

  std::size_t size() const { return phases.size(); }
  /// The names thawed while phase `depth` runs: those of all phases up to it, less what they freeze again. Expanded
  /// schedules only.
  std::vector<std::string> thawed_at(std::size_t depth) const;
  /// The map that files hold, for `Config::ft_schedule` and for writing: {"0": {"params": […]}, "1": {…}}.
  Tree to_tree() const;
  bool operator==(const FinetuningSchedule&) const = default;
};

/// The entry that stands for every parameter that no phase names.
inline constexpr const char* kRestOfModel = "<rest>";

/// The schedule made of a model without one: its parameters from the last to the first, two in each phase.
FABRIC_API FinetuningSchedule implicit_schedule(const ModelParameters& parameters);

/// Writes the schedule as YAML, whole or not at all. Throws CheckpointError when it cannot be written.
FABRIC_API void write_schedule(const Tree& schedule, const std::filesystem::path& path);

/// "1e-6" or 1e-6: some YAML readers and writers keep such numbers as text. Empty for anything else.
FABRIC_API std::optional<double> lr_number(const Tree& value);

}  // namespace fabric
