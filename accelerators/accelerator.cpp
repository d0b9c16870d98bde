#include <fabric/accelerators/accelerator.h>

#include <sched.h>

#include <algorithm>
#include <memory>
#include <thread>

namespace fabric {
namespace {

// The mask's size is not known before: the kernel refuses one that is smaller than its own.
int allowed_processors() {
  for (int size = 1024; size <= 1 << 20; size *= 4) {
    std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(CPU_ALLOC(size), [](cpu_set_t* set) { CPU_FREE(set); });
    if (!mask) break;
    if (sched_getaffinity(0, CPU_ALLOC_SIZE(size), mask.get()) == 0)
      return CPU_COUNT_S(CPU_ALLOC_SIZE(size), mask.get());
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

int Accelerator::threads_per_rank(int local_world_size) const {
  return std::max(1, allowed_processors() / std::max(1, local_world_size));
}

}  // namespace fabric
