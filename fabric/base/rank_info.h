#pragma once

#include <string>
#include <vector>

#include <fabric/export.h>

namespace fabric {

/// Which part of the samples a rank takes.
struct SamplerShard {
  int num_replicas = 1;
  int rank = 0;
};

/// What one process knows about its place in the job. Made once by a ClusterEnvironment, then handed on unchanged.
struct FABRIC_API RankInfo {
  int world_size = 1;
  int rank = 0;
  int local_rank = 0;
  int local_world_size = 1;
  int node_rank = 0;
  int num_nodes = 1;
  /// Where rank 0 serves the store that the ranks meet at. mpirun alone names none: then empty and 0, and process
  /// groups that need a store ask MPI where it is.
  std::string main_address = "127.0.0.1";
  int main_port = 0;
  /// Where rank 0 serves it instead when main_port is taken, in this order. Empty where the port was given, and not
  /// derived from the job's number as others' may be.
  std::vector<int> spare_ports = {};
  /// What tells this job from others, in words: "run id 7", "SLURM job 12, step 0". Empty: nothing does.
  std::string job = {};
  /// How often the job was restarted by its launcher.
  int restart_count = 0;
  /// The launcher already serves a TCPStore at main_address:main_port, so that rank 0 must be a client too.
  bool store_is_external = false;
  /// Which environment said so: "fabric", "torchelastic", "slurm", "mpi", "pmi", "lsf", "kubeflow".
  std::string source = "fabric";

  /// One line, for bug reports.
  std::string to_string() const;
};

}  // namespace fabric
