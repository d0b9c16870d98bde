#include "plugins/collectives/shm/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

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

}  // namespace

SharedSegment::SharedSegment(Descriptor file, std::size_t bytes) : file_(std::move(file)), bytes_(bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
  if (memory == MAP_FAILED) refuse("it cannot be mapped", errno);
  data_ = static_cast<char*>(memory);
}

SharedSegment::~SharedSegment() {
  if (data_) munmap(data_, bytes_);
}

std::unique_ptr<SharedSegment> SharedSegment::make(std::size_t bytes) {
  Descriptor file(memfd_create("torchfabric", MFD_CLOEXEC));
  if (!file) refuse("none can be made", errno);
  // Now, since a lack of it would otherwise show as SIGBUS later.
  if (int error = posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)))
    refuse("there are no " + std::to_string(bytes) + " bytes for it", error);
  return std::unique_ptr<SharedSegment>(new SharedSegment(std::move(file), bytes));
}

std::unique_ptr<SharedSegment> SharedSegment::open(const std::string& place, std::size_t bytes) {
  const auto space = place.find(' ');
  const std::string path = place.substr(0, space);
  Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file) refuse("that of rank 0 cannot be opened (another user's, or in another container)", errno);
  // The same number of a process may stand for another one in another container.
  if (space == std::string::npos || identity(file.get()) != place.substr(space + 1))
    refuse("that of rank 0 is not to be found here (it is in another container)", ENOENT);
  return std::unique_ptr<SharedSegment>(new SharedSegment(std::move(file), bytes));
}

std::string SharedSegment::place() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file_.get()) + " " + identity(file_.get());
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
