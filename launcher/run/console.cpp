#include "launcher/run/console.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace fabric::run {
namespace {

/// A pipe that poll says is ready takes as much without blocking.
constexpr std::size_t kPipeUnit = 4096;
constexpr std::size_t kFileUnit = 256 * 1024;

bool same_file(int one, int other) {
  struct stat a, b;
  return fstat(one, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace

Sink::Sink(int fd) : fd_(fd) {
  struct stat info;
  if (fstat(fd, &info) != 0)
    is_dead_ = true;
  else
    can_poll_ = !S_ISREG(info.st_mode);
  if (is_dead_ || !S_ISFIFO(info.st_mode)) return;
  // A second opening of a pipe can be without blocking and leave everybody else's as it is.
  auto path = "/proc/self/fd/" + std::to_string(fd);
  own_ = Descriptor(open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  if (own_) fd_ = own_.get();
}

bool Sink::write_some() {
  bool moved = false;
  while (!is_empty()) {
    pollfd entry{fd_, POLLOUT, 0};
    if (!is_dead_ && can_poll_ && poll(&entry, 1, 0) <= 0) break;
    auto size = std::min(buffer_.size() - written_, can_poll_ && !own_ ? kPipeUnit : kFileUnit);
    ssize_t done = is_dead_ ? -1 : write(fd_, buffer_.data() + written_, size);
    if (done < 0 && !is_dead_ && (errno == EAGAIN || errno == EINTR)) break;
    if (done < 0) is_dead_ = true;
    written_ = done < 0 ? buffer_.size() : written_ + static_cast<std::size_t>(done);
    moved = true;
  }
  if (is_empty()) {
    buffer_.clear();
    written_ = 0;
  } else if (written_ > 256 * 1024) {
    buffer_.erase(0, written_);
    written_ = 0;
  }
  return moved;
}

void Sink::flush(std::chrono::milliseconds limit) {
  auto deadline = std::chrono::steady_clock::now() + limit;
  for (write_some(); !is_empty(); write_some()) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd entry{fd_, POLLOUT, 0};
    if (left <= 0 || poll(&entry, 1, static_cast<int>(std::min<long long>(left, 1 << 30))) <= 0) return;
  }
}

Console::Console() : out_(1), error_(2), is_same_(same_file(1, 2)) {}

void Console::say(const std::string& text) { error().buffer() += "fabric: " + text + "\n"; }

void Console::flush(std::chrono::milliseconds limit) {
  out().flush(limit);
  error().flush(limit);
}

}  // namespace fabric::run
