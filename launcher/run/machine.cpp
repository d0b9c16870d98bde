#include "launcher/run/machine.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <fabric/base/error.h>

#include "fabric/base/files_internal.h"
#include "fabric/base/processors/container_limits_internal.h"

namespace fabric::run {
namespace {

// Two threads of one core are one group under "core".
std::string group_of(int processor, const std::string& bind_to) {
  auto folder = "/sys/devices/system/cpu/cpu" + std::to_string(processor);
  if (bind_to == "numa") {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored))
      if (entry.path().filename().string().starts_with("node")) return entry.path().filename();
    return "node0";
  }
  auto package = first_line(folder + "/topology/physical_package_id");
  if (bind_to == "socket") return package;
  auto core = first_line(folder + "/topology/core_id");
  return core.empty() ? std::to_string(processor) : package + "." + core;
}

}  // namespace

std::vector<int> usable_processors() {
  std::vector<int> numbers;
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) numbers.push_back(i);
  return numbers;
}

int count_processors() {
  const int usable = static_cast<int>(usable_processors().size());
  return std::min(usable, container::processors().value_or(usable));
}

int count_gpus(const EnvReader& env) {
  int present = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/dev", ignored)) {
    auto name = entry.path().filename().string();
    if (name.starts_with("nvidia") && name.size() > 6 && name.find_first_not_of("0123456789", 6) == std::string::npos)
      ++present;
  }
  auto visible = env.get("CUDA_VISIBLE_DEVICES");
  if (!visible || present == 0) return present;
  // CUDA stops reading at the first that it does not know.
  if (visible->empty() || visible->starts_with("-")) return 0;
  return std::min<int>(present, static_cast<int>(std::count(visible->begin(), visible->end(), ',')) + 1);
}

std::string host_name(const EnvReader& env) {
  if (auto name = env.get("SLURMD_NODENAME")) return *name;
  char name[256] = "localhost";
  gethostname(name, sizeof name - 1);
  return name;
}

int count_workers(const std::string& text, const EnvReader& env) {
  const int processors = count_processors();
  if (text == "cpu") return processors;
  if (text != "gpu" && text != "auto") return std::atoi(text.c_str());
  int gpus = count_gpus(env);
  if (gpus > 0) return gpus;
  if (text == "gpu")
    throw ConfigError("--nproc-per-node gpu: there is no GPU that may be used here; give a number or cpu");
  return processors;
}

std::vector<int> deal_out(const std::vector<std::vector<int>>& groups, int rank, int size) {
  std::vector<int> mine;
  int count = static_cast<int>(groups.size());
  if (count == 0) return mine;
  if (size > count) return groups[static_cast<std::size_t>(static_cast<long>(rank) * count / size)];
  for (int i = rank * count / size; i < (rank + 1) * count / size; ++i)
    mine.insert(mine.end(), groups[static_cast<std::size_t>(i)].begin(), groups[static_cast<std::size_t>(i)].end());
  return mine;
}

std::optional<cpu_set_t> processors_for(const std::string& bind_to, int local_rank, int local_size) {
  if (bind_to == "none") return std::nullopt;
  std::vector<std::string> names;
  std::vector<std::vector<int>> groups;
  for (int processor : usable_processors()) {
    auto name = group_of(processor, bind_to);
    auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end())
      names.push_back(name), groups.push_back({processor});
    else
      groups[static_cast<std::size_t>(found - names.begin())].push_back(processor);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int processor : deal_out(groups, local_rank, local_size)) CPU_SET(processor, &set);
  return set;
}

}  // namespace fabric::run
