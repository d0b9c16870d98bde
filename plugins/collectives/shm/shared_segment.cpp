#include "plugins/collectives/shm/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

constexpr std::size_t kLeastReserve = 1 << 20;

[[noreturn]] void refuse(const std::string& what, int error) {
  throw UnavailableError("the ranks cannot share memory: " + what + ": " + std::strerror(error));
}

// Belongs to the descriptor and not to the process: it goes with the last copy of it.
int lock(int file, int command, int rank, struct flock& where) {
  where = {};
  where.l_type = F_WRLCK;
  where.l_whence = SEEK_SET;
  where.l_start = rank;
  where.l_len = 1;
  return fcntl(file, command, &where);
}

std::string identity(int file) {
  struct stat status {};
  if (fstat(file, &status) != 0) refuse("it cannot be looked at", errno);
  return std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino);
}

// Null where there are not as many addresses.
char* map(int file, std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

}  // namespace

SharedSegment::SharedSegment(Descriptor file, char* data, std::size_t bytes)
    : file_(std::move(file)), bytes_(bytes), data_(data) {
  madvise(data, bytes, MADV_DONTDUMP);  // a core file would hold all that is reserved
}

SharedSegment::~SharedSegment() {
  if (data_) munmap(data_, bytes_);
}

std::unique_ptr<SharedSegment> SharedSegment::make(std::size_t bytes, std::size_t reserve) {
  Descriptor file(memfd_create("torchfabric", MFD_CLOEXEC));
  if (!file) refuse("none can be made", errno);
  // The system would end the process.
  struct rlimit largest {};
  if (getrlimit(RLIMIT_FSIZE, &largest) == 0 && largest.rlim_cur != RLIM_INFINITY) {
    if (bytes > largest.rlim_cur)
      refuse("the limit of file sizes (ulimit -f) is below " + std::to_string(bytes), EFBIG);
    reserve = std::min<std::size_t>(reserve, largest.rlim_cur - bytes);
  }
  // Now, since a lack of it would otherwise show as SIGBUS later.
  if (int error = posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)))
    refuse("there are no " + std::to_string(bytes) + " bytes for it", error);
  for (;; reserve = reserve / 2 < kLeastReserve ? 0 : reserve / 2) {
    if (ftruncate(file.get(), static_cast<off_t>(bytes + reserve)) != 0) refuse("its size cannot be set", errno);
    if (char* data = map(file.get(), bytes + reserve))
      return std::unique_ptr<SharedSegment>(new SharedSegment(std::move(file), data, bytes + reserve));
    if (reserve == 0) refuse(std::to_string(bytes) + " bytes cannot be mapped", errno);
  }
}

std::unique_ptr<SharedSegment> SharedSegment::open(const std::string& place) {
  std::istringstream words(place);
  std::string path, id;
  std::size_t bytes = 0;
  words >> path >> id >> bytes;
  Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file) refuse("that of rank 0 cannot be opened (another user's, or in another container)", errno);
  // The same number of a process may stand for another one in another container.
  if (bytes == 0 || identity(file.get()) != id)
    refuse("that of rank 0 is not to be found here (it is in another container)", ENOENT);
  char* data = map(file.get(), bytes);
  if (!data) refuse(std::to_string(bytes) + " bytes cannot be mapped", errno);
  return std::unique_ptr<SharedSegment>(new SharedSegment(std::move(file), data, bytes));
}

std::string SharedSegment::place() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file_.get()) + " " + identity(file_.get()) +
         " " + std::to_string(bytes_);
}

void SharedSegment::live_as(int rank) {
  struct flock where;
  if (lock(file_.get(), F_OFD_SETLK, rank, where) != 0) refuse("this rank's place in it cannot be marked", errno);
}

bool SharedSegment::is_gone(int rank) const {
  struct flock where;
  return lock(file_.get(), F_OFD_GETLK, rank, where) == 0 && where.l_type == F_UNLCK;
}

}  // namespace fabric::collectives
