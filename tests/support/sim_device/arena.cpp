#include "tests/support/sim_device/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include <c10/util/Exception.h>

namespace sim {

std::size_t Arena::page() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

void Arena::map(int protection_of_host_view) {
  file_ = memfd_create("sim", MFD_CLOEXEC);
  TORCH_CHECK(file_ >= 0 && ftruncate(file_, static_cast<off_t>(kSize)) == 0, "sim: no memory file");
  auto view = [&](int protection) {
    void* at = mmap(nullptr, kSize, protection, MAP_SHARED | MAP_NORESERVE, file_, 0);
    TORCH_CHECK(at != MAP_FAILED, "sim: no address space");
    return static_cast<char*>(at);
  };
  kernel_ = view(PROT_READ | PROT_WRITE);
  host_ = view(protection_of_host_view);
}

char* Arena::take(std::size_t bytes) {
  if (bytes > kSize - used_) return nullptr;
  return kernel_ + std::exchange(used_, used_ + bytes);
}

void Arena::protect(std::size_t begin, std::size_t end, int protection) const {
  std::size_t first = begin / page() * page(), last = (end + page() - 1) / page() * page();
  if (last > first) mprotect(host_ + first, last - first, protection);
}

void Arena::discard(char* kernel_address, std::size_t bytes) const {
  auto begin = static_cast<std::size_t>(kernel_address - kernel_);
  std::size_t first = (begin + page() - 1) / page() * page(), last = (begin + bytes) / page() * page();
  if (last > first)
    fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first),
              static_cast<off_t>(last - first));
}

}  // namespace sim
