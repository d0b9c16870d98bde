#pragma once

#include <string>

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// Tasks started by srun, known by SLURM_STEP_ID, which a batch script or an allocation without srun does not have.
/// Address: MASTER_ADDR or the first host of the step. Port: MASTER_PORT or 15000 plus the last four digits of the job
/// id.
class FABRIC_API SlurmEnvironment : public ExternalEnvironment {
 public:
  explicit SlurmEnvironment(const EnvReader& env = *process_env());
  /// False as well in interactive jobs, which are named "bash" or "interactive".
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

/// Warns when srun can be found but did not start this process. Says how to use it.
FABRIC_API void warn_if_srun_is_unused(const EnvReader& env);

}  // namespace fabric
