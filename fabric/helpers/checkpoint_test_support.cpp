#include "fabric/helpers/checkpoint_test_support.h"

#include <sys/mount.h>

#include "tests/support/catch.h"

namespace checkpoint_test {

SmallDisk::SmallDisk(const std::filesystem::path& at, const char* options) : path(at) {
  std::filesystem::create_directory(path);
  ok = mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0;
  if (!ok) WARN("skipped: mounting a small file system needs more rights");
}

SmallDisk::~SmallDisk() {
  if (ok) umount2(path.c_str(), MNT_DETACH);
}

void SmallDisk::make_read_only() const {
  REQUIRE(mount(nullptr, path.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0);
}

}  // namespace checkpoint_test
