#include "fabric/base/processors/processor_share_internal.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "fabric/base/processors/container_limits_internal.h"

namespace fabric {
namespace {

// The mask's size is not known before: the kernel refuses one that is smaller than its own.
int allowed_processors(pid_t process) {
  for (int size = 1024; size <= 1 << 20; size *= 4) {
    std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(CPU_ALLOC(size), [](cpu_set_t* set) { CPU_FREE(set); });
    if (!mask) break;
    if (sched_getaffinity(process, CPU_ALLOC_SIZE(size), mask.get()) == 0)
      return CPU_COUNT_S(CPU_ALLOC_SIZE(size), mask.get());
  }
  return process == 0 ? static_cast<int>(std::thread::hardware_concurrency()) : 0;
}

// Whole numbers only, since this is no place to refuse a variable.
int number_or_zero(const EnvReader& env, const char* name) {
  auto text = env.get_or(name, "");
  bool plain = !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
  return plain ? std::stoi(text) : 0;
}

}  // namespace

int processor_share(const EnvReader& env, int own, int of_parent, int local_world_size) {
  int ranks = std::max(1, local_world_size);
  if (ranks > 1 && !env.has("LOCAL_RANK")) {
    // First, since ranks of mpirun inherit the variables of a SLURM job that they run in.
    if (env.has("OMPI_COMM_WORLD_LOCAL_RANK")) return std::max(1, std::min(own, std::max(own, of_parent) / ranks));
    int per_task = number_or_zero(env, "SLURM_CPUS_PER_TASK");
    bool are_tasks = env.has("SLURM_STEP_ID") && number_or_zero(env, "SLURM_NTASKS") >= ranks;
    if (are_tasks && per_task > 0) return std::max(1, std::min(own, per_task));
  }
  return std::max(1, own / ranks);
}

int processor_share(const EnvReader& env, int local_world_size) {
  // A container's quota is one for all that runs in it.
  const int most = container::processors().value_or(1 << 30);
  return processor_share(env, std::min(allowed_processors(0), most), std::min(allowed_processors(getppid()), most),
                         local_world_size);
}

}  // namespace fabric
