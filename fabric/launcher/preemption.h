#pragma once

#include <csignal>
#include <initializer_list>
#include <memory>

#include <fabric/export.h>

namespace fabric {

/// Schedulers send a signal some time before they take the machine away (SLURM: `sbatch --signal=USR1@120`), and some
/// send it twice. As long as this object lives the signal ends nothing and is merely noted:
///
///     fabric::PreemptionSignal preemption;
///     for (…; ++step) {
///       …
///       bool ending = fabric.all_reduce(fabric::Value(int(preemption.received())), ReduceOp::max).as_double() > 0;
///       if (!ending) continue;
///       fabric.save(path, state);
///       if (fabric.is_global_zero()) fabric::requeue_job();
///       break;
///     }
///
/// The ranks get the signal at different steps, so they have to agree before they save, as above. One object at a time.
class FABRIC_API PreemptionSignal {
 public:
  /// Throws MisuseError when another one lives, ConfigError for a signal that cannot be handled.
  explicit PreemptionSignal(std::initializer_list<int> signals = {SIGUSR1});
  /// Gives the signals back to those who had them.
  ~PreemptionSignal();
  PreemptionSignal(const PreemptionSignal&) = delete;
  PreemptionSignal& operator=(const PreemptionSignal&) = delete;
  /// This process has got one of the signals.
  bool received() const noexcept { return number() != 0; }
  /// Which one came last; 0: none.
  int number() const noexcept;
  /// Forgets what came.
  void clear() noexcept;

 private:
  struct Handlers;
  std::unique_ptr<Handlers> handlers_;
};

/// Puts this SLURM job, or this task of a job array, back into the queue, under the same id; SLURM then stops it here.
/// Call it on one rank, when the checkpoint is on the disk. False, with a warning, outside of SLURM or when it refuses.
FABRIC_API bool requeue_job();

/// How often this job was started before: by SLURM (SLURM_RESTART_COUNT) plus by the launcher
/// (TORCHELASTIC_RESTART_COUNT). 0: the first time.
FABRIC_API int restart_count();

}  // namespace fabric
