#pragma once

#include <sched.h>

#include <optional>
#include <string>
#include <vector>

#include <fabric/base/env_reader.h>

namespace fabric::run {

/// Processors that this process may use.
std::vector<int> usable_processors();
/// How many of them are worth using: no more than a container's quota of processor time.
int count_processors();
/// NVIDIA GPUs of this machine, or as many as CUDA_VISIBLE_DEVICES names.
int count_gpus(const EnvReader& env);
/// The name of this machine, or of the fake node that SLURM says it is.
std::string host_name(const EnvReader& env);

/// "4", "auto" (GPUs, or processors where there are none), "cpu" or "gpu" as a number. Throws ConfigError.
int count_workers(const std::string& text, const EnvReader& env);

/// The processors for a local rank under `--bind-to core|socket|numa`: whole groups, dealt out evenly. With more ranks
/// than groups, ranks share them. Nothing for "none".
std::optional<cpu_set_t> processors_for(const std::string& bind_to, int local_rank, int local_size);
/// Deals `groups` out to `size` ranks and returns the processors of one.
std::vector<int> deal_out(const std::vector<std::vector<int>>& groups, int rank, int size);

}  // namespace fabric::run
