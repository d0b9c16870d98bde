#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/base/env_reader.h>
#include <fabric/base/rank_info.h>

namespace fabric {

/// Tells a process its place in a job that somebody started: our launcher, torchrun, SLURM, mpirun … No LibTorch here.
class FABRIC_API ClusterEnvironment {
 public:
  virtual ~ClusterEnvironment() = default;

  virtual std::string name() const = 0;
  /// True when the ranks are already running, so that `Fabric::launch` starts none.
  virtual bool creates_processes_externally() const = 0;
  virtual std::string main_address() const = 0;
  virtual int main_port() const = 0;
  virtual int world_size() const = 0;
  virtual int global_rank() const = 0;
  virtual int local_rank() const = 0;
  virtual int node_rank() const = 0;
  /// Ranks on this node; 0 when the environment does not say.
  virtual int local_world_size() const { return 0; }
  /// Nodes of the job; 0 when the environment does not say.
  virtual int num_nodes() const { return 0; }
  virtual int restart_count() const { return 0; }
  /// Ports beside main_port, where that was derived from the job's number and may be another job's as well.
  virtual std::vector<int> spare_ports() const { return {}; }
  /// What tells this job from others, in words; empty where nothing does.
  virtual std::string job() const { return ""; }
  virtual bool store_is_external() const { return false; }
  /// True when the variables say that each rank sees a device that is its own, and no other rank's: then `devices` is 1
  /// whatever the number of ranks on the node.
  virtual bool has_device_per_rank() const { return false; }
  /// Only the plain Fabric environment obeys these, until its ranks run; the others know better and ignore them.
  virtual void set_world_size(int) {}
  virtual void set_global_rank(int) {}
  /// Throws ConfigError when `devices` per node and `num_nodes` contradict what the environment says. Ranks that are
  /// yet to be started contradict nothing, nor does one device where each rank has its own.
  virtual void validate_settings(int devices, int num_nodes) const;
  virtual void teardown() {}

  /// Everything above in one struct. Where the environment does not say them, num_nodes is 1 and local_world_size is
  /// world_size / num_nodes.
  RankInfo rank_info() const;
};

/// Makes the environment that applies: one that the program registered, else in the order of precedence torchelastic >
/// slurm > lsf > mpi > pmi > fabric. Variables that contradict each other are a ConfigError that names them.
FABRIC_API std::shared_ptr<ClusterEnvironment> detect_environment(std::shared_ptr<EnvReader> env = process_env());
/// For a process that found no environment, before it starts ranks itself: warns when the variables of a launcher that
/// is not known say that there are other ranks already, and mentions srun, once for each user and machine, where it
/// could be used.
FABRIC_API void mention_unused_launchers(const EnvReader& env);
/// The named environment ("fabric", "torchelastic", "slurm", "lsf", "mpi", "pmi", "kubeflow", or a registered one),
/// whether detected or not.
FABRIC_API std::shared_ptr<ClusterEnvironment> make_environment(const std::string& name,
                                                                std::shared_ptr<EnvReader> env = process_env());
FABRIC_API std::vector<std::string> available_environments();

using MakeEnvironment = std::function<std::shared_ptr<ClusterEnvironment>(const std::shared_ptr<EnvReader>& env)>;
using DetectEnvironment = std::function<bool(const EnvReader& env)>;
/// Adds a kind of environment: a scheduler of your own. `detect` says whether it started this process; kinds that a
/// program adds are asked before the built-in ones. Empty: the kind is made by name only. Throws ConfigError for a name
/// that is taken, unless `override_existing`. Names are case-insensitive.
FABRIC_API void register_environment(const std::string& name, MakeEnvironment make, DetectEnvironment detect = {},
                                     bool override_existing = false, std::string description = "");

}  // namespace fabric
