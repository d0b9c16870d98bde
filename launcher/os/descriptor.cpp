#include "launcher/os/descriptor.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include <fabric/base/error.h>

namespace fabric {

void Descriptor::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

Descriptor above_stdio(int fd, const char* what) {
  int moved = fd;
  if (fd >= 0 && fd <= 2) {
    moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int error = errno;
    close(fd);
    errno = error;
  }
  if (moved >= 0) return Descriptor(moved);
  std::string hint = errno == EMFILE ? ". Each rank needs four descriptors; raise the limit with ulimit -n" : "";
  throw LaunchError(std::string("cannot start ranks: no descriptor for ") + what + ": " + std::strerror(errno) + hint);
}

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

void close_inherited(const std::vector<int>& kept, bool for_programs) {
  std::vector<int> open;
  if (DIR* folder = opendir("/proc/self/fd")) {
    while (const dirent* entry = readdir(folder)) open.push_back(std::atoi(entry->d_name));
    std::erase(open, dirfd(folder));
    closedir(folder);
  }
  if (open.empty())  // no /proc here
    for (int fd = 3; fd < 65536; ++fd) open.push_back(fd);
  for (int fd : open) {
    if (fd <= 2 || std::find(kept.begin(), kept.end(), fd) != kept.end()) continue;
    int flags = fcntl(fd, F_GETFD);
    if (!for_programs || (flags >= 0 && (flags & FD_CLOEXEC))) close(fd);
  }
}

Pipe make_pipe() {
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) above_stdio(-1, "a pipe");
  Descriptor read(ends[0]), write(ends[1]);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  auto move_up = [](Descriptor& end) {
    if (end.get() <= 2) end = Descriptor(fcntl(end.get(), F_DUPFD_CLOEXEC, 3));
    if (!end) above_stdio(-1, "a pipe");
  };
  move_up(read);
  move_up(write);
  return {std::move(read), std::move(write)};
}

Descriptor open_dev_null() { return above_stdio(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null"); }

Descriptor make_wakeup() { return above_stdio(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "an eventfd"); }

Descriptor open_pidfd(pid_t pid) {
  Descriptor process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (process && process.get() <= 2) process = Descriptor(fcntl(process.get(), F_DUPFD_CLOEXEC, 3));
  return process;
}

Descriptor require_pidfd(pid_t pid) {
  auto process = open_pidfd(pid);
  if (!process) above_stdio(-1, "watching a process (pidfd_open, Linux 5.3)");
  return process;
}

}  // namespace fabric
