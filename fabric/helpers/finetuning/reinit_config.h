#pragma once

#include <optional>
#include <string>
#include <vector>

#include <fabric/config.h>
#include <fabric/helpers/finetuning/finetuning_messages.h>

namespace fabric {

/// When a learning-rate scheduler is stepped by a FinetuningScheduler, and with what.
struct FABRIC_API LRStepping {
  /// "epoch": at the end of every `frequency`-th epoch; "step": after every `frequency`-th optimizer step of an epoch,
  /// counted anew in each. ReduceLROnPlateau of interval "step" steps where a metric comes: with `step_end(metrics)`,
  /// or at the epoch's end when the epoch's last step is such a one.
  std::string interval = "epoch";
  int frequency = 1;
  /// The metric for ReduceLROnPlateau.
  std::string monitor = {};
  /// A missing metric is an error; off: the step is left out with a warning.
  bool strict = true;
  /// For logs.
  std::string name = {};
  void validate() const;
  bool operator==(const LRStepping&) const = default;
  FABRIC_FIELDS(LRStepping, interval, frequency, monitor, strict, name)
};

/// A class by name and what its constructor gets, as `optimizer_init` and `lr_scheduler_init` write it.
struct FABRIC_API ClassInit {
  std::string class_path;
  Tree init_args = Tree::Map{};
  Tree to_tree() const;
};

/// `{optimizer_init: {class_path, init_args}}`.
struct FABRIC_API OptimizerReinit {
  ClassInit optimizer_init;
};

/// `{lr_scheduler_init: {class_path, init_args}, pl_lrs_cfg: {…}, init_pg_lrs: […], use_current_optimizer_pg_lrs}`.
struct FABRIC_API LRSchedulerReinit {
  ClassInit lr_scheduler_init;
  LRStepping stepping;
  std::vector<double> init_pg_lrs;
  bool use_current_optimizer_pg_lrs = false;
  Tree to_tree() const;
};

/// Where such settings were found, for errors.
struct ReinitPlace {
  std::string where;
  /// Of one phase, rather than for all.
  bool is_explicit = true;
  bool allow_untested = false;
};

/// Reads the settings and builds what they name once over a dummy, so that mistakes show before training begins. Throws
/// ConfigError.
FABRIC_API OptimizerReinit read_optimizer_reinit(const Tree& tree, const ReinitPlace& place);
FABRIC_API LRSchedulerReinit read_lr_scheduler_reinit(const Tree& tree, const ReinitPlace& place,
                                                      const FinetuningMessages& messages);

}  // namespace fabric
