#pragma once

#include <memory>
#include <string>

#include <fabric/plugins/environments/cluster_environment.h>

namespace fabric {

class PortReservation;

/// The plain environment. Ranks count as running when LOCAL_RANK is set (our launchers, or by hand together with RANK,
/// WORLD_SIZE, MASTER_ADDR and MASTER_PORT; LOCAL_RANK without RANK or WORLD_SIZE is a ConfigError); otherwise this
/// process is alone until `Fabric::launch` starts the others. Follows the variables as they are now, so that it is
/// right before and after a launch.
class FABRIC_API FabricEnvironment : public ClusterEnvironment {
 public:
  explicit FabricEnvironment(std::shared_ptr<EnvReader> env = process_env());
  ~FabricEnvironment() override;

  std::string name() const override { return "fabric"; }
  bool creates_processes_externally() const override;
  /// MASTER_ADDR or 127.0.0.1.
  std::string main_address() const override;
  /// MASTER_PORT, STANDALONE_PORT, or a free port that is reserved by the first call and stays the same.
  int main_port() const override;
  int world_size() const override;
  int global_rank() const override;
  int local_rank() const override;
  int node_rank() const override;
  int local_world_size() const override;
  int num_nodes() const override;
  int restart_count() const override;
  /// FABRIC_JOB_ID, which `launch` gives to the ranks that it starts on one node.
  std::string job() const override;
  bool has_device_per_rank() const override;
  /// Obeyed as long as the ranks do not run.
  void set_world_size(int world_size) override { world_size_ = world_size; }
  void set_global_rank(int rank) override { rank_ = rank; }

 private:
  /// A variable that every running rank has.
  int running(const std::string& name) const;

  std::shared_ptr<EnvReader> env_;
  int world_size_ = 1;
  int rank_ = 0;
  mutable std::unique_ptr<PortReservation> reservation_;
};

}  // namespace fabric
