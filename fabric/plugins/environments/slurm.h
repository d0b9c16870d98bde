#pragma once

#include <string>

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// Tasks started by srun, known by SLURM_STEP_ID, which a batch script or an allocation without srun does not have.
/// Address: MASTER_ADDR or the first host of the step. Port: MASTER_PORT or 15000 plus the last four digits of the job
/// id; others when that is taken.
class FABRIC_API SlurmEnvironment : public ExternalEnvironment {
 public:
  explicit SlurmEnvironment(const EnvReader& env = *process_env());
  /// False as well for what is typed in the shell of an interactive job, which is named "bash" or "interactive": it has
  /// a terminal, or is the only task.
  static bool detect(const EnvReader& env);
  static bool is_interactive(const EnvReader& env);
  /// Empty in an interactive job, and outside of jobs.
  static std::string job_id(const EnvReader& env = *process_env());
  void validate_settings(int devices, int num_nodes) const override;

 private:
  bool interactive_;
  /// 0: the variables do not say.
  int tasks_per_node_;
};

/// Says how to use srun when it can be found but did not start this process; once for each user and machine, of which a
/// note is left in the cache folder (XDG_CACHE_HOME, or ~/.cache).
FABRIC_API void hint_at_srun(const EnvReader& env);

}  // namespace fabric
