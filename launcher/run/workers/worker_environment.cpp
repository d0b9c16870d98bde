#include "launcher/run/workers/worker_environment.h"

#include <unistd.h>

#include <algorithm>

#include "launcher/os/signal_name.h"

namespace fabric::run {
namespace {

constexpr const char* kPlace[] = {"RANK",
                                  "WORLD_SIZE",
                                  "LOCAL_RANK",
                                  "LOCAL_WORLD_SIZE",
                                  "NODE_RANK",
                                  "MASTER_ADDR",
                                  "MASTER_PORT",
                                  "FABRIC_LAUNCHED",
                                  "FABRIC_JOB_ID",
                                  "FABRIC_LAUNCH_HISTORY",
                                  "FABRIC_HEARTBEAT_FD",
                                  "STANDALONE_PORT",
                                  "FABRIC_PROGRESS_COLUMNS",
                                  "FABRIC_RDZV_TOKEN"};
constexpr const char* kPrefixes[] = {"GROUP_RANK",      "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK",
                                     "ROLE_WORLD_SIZE", "TORCHELASTIC_",    "PET_"};
constexpr const char* kSettings[] = {"CLI_USED", "ACCELERATOR", "STRATEGY", "DEVICES", "NUM_NODES", "PRECISION"};

bool tells_a_place(const std::string& name) {
  auto is = [&](const char* other) { return name == other; };
  auto begins = [&](const char* prefix) { return name.starts_with(prefix); };
  return std::any_of(std::begin(kPlace), std::end(kPlace), is) ||
         std::any_of(std::begin(kPrefixes), std::end(kPrefixes), begins);
}

std::string visible_device(const Variables& variables, int local_rank) {
  auto found = variables.find("CUDA_VISIBLE_DEVICES");
  if (found == variables.end()) return std::to_string(local_rank);
  std::string rest = found->second;
  for (int i = 0; i < local_rank; ++i) {
    auto comma = rest.find(',');
    if (comma == std::string::npos) return found->second;
    rest = rest.substr(comma + 1);
  }
  return rest.substr(0, rest.find(','));
}

void add_job(Variables& variables, const Job& job, const Options& options) {
  variables["WORLD_SIZE"] = variables["ROLE_WORLD_SIZE"] = std::to_string(job.world_size);
  variables["LOCAL_WORLD_SIZE"] = std::to_string(job.local_size);
  variables["GROUP_RANK"] = std::to_string(job.node);
  variables["GROUP_WORLD_SIZE"] = std::to_string(job.nodes);
  variables["ROLE_NAME"] = job.role;
  variables["TORCHELASTIC_MAX_RESTARTS"] = std::to_string(job.max_restarts);
  variables["TORCHELASTIC_RUN_ID"] = job.id;
  // We serve no store, so rank 0 does.
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  std::string stop;
  for (int number : options.stop_on) {
    if (!stop.empty()) stop += ',';
    stop += signal_name(number);
  }
  variables["TORCHELASTIC_SIGNALS_TO_HANDLE"] = stop;
  variables.try_emplace("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1");
}

void add_settings(Variables& variables, const Job& job, const Options& options) {
  bool any = false;
  auto set = [&](const char* name, const std::string& value) {
    if (value.empty()) return;
    variables[name] = value;
    any = true;
  };
  set("FABRIC_ACCELERATOR", options.accelerator);
  set("FABRIC_STRATEGY", options.strategy);
  set("FABRIC_DEVICES", options.devices);
  set("FABRIC_PRECISION", options.precision);
  if (any) variables["FABRIC_CLI_USED"] = "1";
  if (any && job.nodes > 1) variables["FABRIC_NUM_NODES"] = std::to_string(job.nodes);
}

}  // namespace

Variables outer_variables() {
  std::vector<std::string> all;
  for (char** entry = environ; entry && *entry; ++entry) all.emplace_back(*entry);
  return without_outer_job(all);
}

Variables without_outer_job(const std::vector<std::string>& variables) {
  Variables kept;
  for (const auto& entry : variables) {
    auto equal = entry.find('=', 1);
    if (equal == std::string::npos) continue;
    auto name = entry.substr(0, equal);
    if (!tells_a_place(name)) kept.emplace(name, entry.substr(equal + 1));
  }
  // Settings of an outer command line go with it; those that the user exported stay.
  for (std::string prefix : {"FABRIC_", "LT_"}) {
    auto used = kept.find(prefix + "CLI_USED");
    if (used == kept.end() || used->second != "1") continue;
    for (const char* name : kSettings) kept.erase(prefix + name);
  }
  return kept;
}

Variables common_variables(const Job& job, const Options& options, Variables variables, int processors) {
  int ranks = options.mpi_ranks > 0 ? options.mpi_ranks : job.local_size;
  variables.try_emplace("OMP_NUM_THREADS", std::to_string(std::max(1, processors / ranks)));
  if (options.mpi_ranks == 0) {
    add_job(variables, job, options);
  } else {
    // mpirun tells its ranks their places; what says "torchrun" would win over that.
    variables["OMPI_ALLOW_RUN_AS_ROOT"] = variables["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
  }
  if (job.nodes == 1 || options.mpi_ranks == 0) {
    variables["MASTER_ADDR"] = job.master_addr;
    variables["MASTER_PORT"] = std::to_string(job.master_port);
  }
  add_settings(variables, job, options);
  for (const auto& [name, value] : options.variables) variables[name] = value;
  return variables;
}

void add_place(Variables& variables, const Job& job, const Options& options, int local_rank, int attempt,
               const std::string& error_file) {
  auto rank = std::to_string(job.first_rank + local_rank);
  variables["RANK"] = variables["ROLE_RANK"] = rank;
  variables["LOCAL_RANK"] = std::to_string(options.virtual_local_rank ? 0 : local_rank);
  if (options.virtual_local_rank) variables["CUDA_VISIBLE_DEVICES"] = visible_device(variables, local_rank);
  variables["TORCHELASTIC_RESTART_COUNT"] = std::to_string(attempt);
  if (!error_file.empty()) variables["TORCHELASTIC_ERROR_FILE"] = error_file;
}

std::vector<std::string> substitute_local_rank(std::vector<std::string> arguments, int local_rank) {
  const std::string name = "${local_rank}", value = std::to_string(local_rank);
  for (auto& argument : arguments)
    for (auto at = argument.find(name); at != std::string::npos; at = argument.find(name, at + value.size()))
      argument.replace(at, name.size(), value);
  return arguments;
}

}  // namespace fabric::run
