#pragma once

#include <sys/types.h>

#include <string_view>
#include <utility>
#include <vector>

namespace fabric {

/// Owns a file descriptor. All that are made here are closed on exec and never 0, 1 or 2, which a program may have
/// closed.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

struct Pipe {
  Descriptor read, write;
};

/// Moves a descriptor above 2. Throws LaunchError saying what it was for when `fd` is -1 or there are too many.
Descriptor above_stdio(int fd, const char* what);
/// Writes all of it, in the face of signals; false with errno set when that cannot be.
bool write_all(int fd, std::string_view bytes);
/// In a child that was just forked: closes what the parent had open, but for `kept`, stdin, stdout and stderr. What is
/// not closed on exec stays as well with `for_programs`: it is meant for programs that the child will start.
void close_inherited(const std::vector<int>& kept, bool for_programs = false);
/// The read end does not block. Throws LaunchError.
Pipe make_pipe();
Descriptor open_dev_null();
/// An eventfd that does not block, to wake a thread which polls.
Descriptor make_wakeup();
/// A pidfd: readable once the process has ended. Empty with errno set where there is none (before Linux 5.3).
Descriptor open_pidfd(pid_t pid);
/// The same; throws LaunchError.
Descriptor require_pidfd(pid_t pid);

}  // namespace fabric
