#pragma once

#include <optional>
#include <string>
#include <vector>

#include <fabric/base/env_reader.h>

namespace fabric {

/// Throws ConfigError naming both variables unless 0 ≤ index < count and count ≥ 1.
void check_index(const std::string& index_name, int index, const std::string& count_name, int count);
/// Throws ConfigError unless world_size = devices × num_nodes; `source` says what started the ranks.
void check_product(const std::string& source, int world_size, int devices, int num_nodes);
/// Throws ConfigError when `source` says another number of nodes (0: it says none) than `num_nodes`.
void check_node_count(const std::string& source, int said, int num_nodes);
/// How many GPUs CUDA_VISIBLE_DEVICES names; nothing when it is not set.
std::optional<int> count_visible_devices(const EnvReader& env);
/// True when CUDA_VISIBLE_DEVICES names one GPU: what starts ranks with a GPU of their own sets it so for each.
bool sees_one_device(const EnvReader& env);
/// The variable as a port from 1 to 65535, or the fallback when it is not set.
int port_or(const EnvReader& env, const std::string& name, int fallback);
/// The name of a job in words: what the launcher calls it, and FABRIC_JOB_ID, which whoever starts ranks by hand gives
/// to all of one job. Empty when there is neither.
std::string job_name(const EnvReader& env, const std::string& of_launcher = "");
/// Ports between 20000 and 29999, below those that systems hand out, that are other ones for other jobs: where rank 0
/// serves when a derived port is taken.
std::vector<int> ports_beside(int derived, const std::string& job);

}  // namespace fabric
