#pragma once

#include <string>
#include <utility>
#include <vector>

#include <fabric/plugins/environments/cluster_environment.h>

namespace fabric {

/// Base of the environments whose ranks all run already. A derived class reads the variables once, in its constructor,
/// and hands over what they say.
class FABRIC_API ExternalEnvironment : public ClusterEnvironment {
 public:
  std::string name() const override { return info_.source; }
  bool creates_processes_externally() const override { return true; }
  std::string main_address() const override { return info_.main_address; }
  int main_port() const override { return info_.main_port; }
  int world_size() const override { return info_.world_size; }
  int global_rank() const override { return info_.rank; }
  int local_rank() const override { return info_.local_rank; }
  int node_rank() const override { return info_.node_rank; }
  int local_world_size() const override { return info_.local_world_size; }
  int num_nodes() const override { return info_.num_nodes; }
  int restart_count() const override { return info_.restart_count; }
  std::vector<int> spare_ports() const override { return info_.spare_ports; }
  std::string job() const override { return info_.job; }
  bool store_is_external() const override { return info_.store_is_external; }
  bool has_device_per_rank() const override { return device_per_rank_; }

 protected:
  /// In `info`, local_world_size and num_nodes may be 0: not known.
  explicit ExternalEnvironment(RankInfo info, bool device_per_rank = false)
      : info_(std::move(info)), device_per_rank_(device_per_rank) {}

  RankInfo info_;

 private:
  bool device_per_rank_;
};

}  // namespace fabric
