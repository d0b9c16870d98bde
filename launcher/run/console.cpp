#include "launcher/run/console.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "launcher/os/visible.h"

namespace fabric::run {
namespace {

/// A pipe that poll says is ready takes as much without blocking.
constexpr std::size_t kPipeUnit = 4096;
constexpr std::size_t kFileUnit = 256 * 1024;

constexpr std::string_view kEraseLine = "\r\x1b[K";

int columns_of(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// What fits into one row, since a line that wraps cannot be drawn over. Escape sequences take no room; of those only
// colours are kept.
std::string cut_picture(std::string_view text, std::size_t columns) {
  std::string kept;
  bool has_colour = false;
  for (std::size_t used = 0; !text.empty();) {
    auto byte = static_cast<unsigned char>(text[0]);
    std::size_t size = 1;
    if (byte == 0x1b && text.size() > 1 && text[1] == '[') {
      auto end = text.find_first_not_of("0123456789;:?", 2);
      size = end == std::string_view::npos ? text.size() : end + 1;
      bool is_colour = text[size - 1] == 'm';
      if (is_colour) kept += text.substr(0, size);
      has_colour |= is_colour;
    } else if (byte >= 0x20 && byte != 0x7f) {
      bool begins_character = (byte & 0xc0) != 0x80;
      if (begins_character && ++used > columns) break;
      kept += text[0];
    }
    text.remove_prefix(size);
  }
  return has_colour ? kept + "\x1b[m" : kept;
}

bool same_file(int one, int other) {
  struct stat a, b;
  return fstat(one, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace

Sink::Sink(int fd) : fd_(fd) {
  struct stat info;
  if (fstat(fd, &info) != 0)
    is_dead_ = true, error_ = errno;
  else
    can_poll_ = !S_ISREG(info.st_mode), is_terminal_ = isatty(fd) == 1;
  if (is_dead_ || !S_ISFIFO(info.st_mode)) return;
  // A second opening of a pipe can be without blocking and leave everybody else's as it is.
  auto path = "/proc/self/fd/" + std::to_string(fd);
  own_ = Descriptor(open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  if (own_) fd_ = own_.get();
}

void Sink::add(std::string_view lines) {
  if (lines.empty()) return;
  if (!picture_.empty()) buffer_ += kEraseLine;
  buffer_ += lines;
  buffer_ += picture_;
}

void Sink::show(const void* owner, const std::string& picture) {
  if (picture.empty() && owner != painter_) return;
  // Who cannot keep up with lines need not see every picture.
  constexpr std::size_t kMostUnread = 16 * 1024;
  auto drawn = cut_picture(picture, static_cast<std::size_t>(std::max(columns_of(fd_) - 1, 0)));
  if (drawn == picture_ || (!picture.empty() && buffer_.size() - written_ > kMostUnread)) return;
  if (!picture_.empty()) buffer_ += kEraseLine;
  buffer_ += drawn;
  picture_ = std::move(drawn);
  painter_ = picture.empty() ? nullptr : owner;
}

bool Sink::write_some() {
  bool moved = false;
  while (!is_empty()) {
    pollfd entry{fd_, POLLOUT, 0};
    if (!is_dead_ && can_poll_ && poll(&entry, 1, 0) <= 0) break;
    auto size = std::min(buffer_.size() - written_, can_poll_ && !own_ ? kPipeUnit : kFileUnit);
    ssize_t done = is_dead_ ? -1 : write(fd_, buffer_.data() + written_, size);
    if (done < 0 && !is_dead_ && (errno == EAGAIN || errno == EINTR)) break;
    if (done < 0 && !is_dead_) error_ = errno == EPIPE ? 0 : errno;
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

void Console::say(const std::string& text) { error().add("fabric: " + visible(text) + "\n"); }

void Console::say_lines(const std::string& text) { error().add(visible_lines(text)); }

int Console::columns() { return error().is_terminal() ? columns_of(error().fd()) : 0; }

void Console::write_some() {
  bool has_lines = !out_.is_empty();
  out_.write_some();
  if (has_lines && out_.error() != 0 && !is_same_ && !has_complained_) {
    has_complained_ = true;
    say(std::string("warning: stdout cannot be written: ") + std::strerror(out_.error()) + "; its lines are lost");
  }
  error().write_some();
}

void Console::flush(std::chrono::milliseconds limit) {
  write_some();
  out().flush(limit);
  write_some();
  error().flush(limit);
}

}  // namespace fabric::run
