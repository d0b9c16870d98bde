#include <fabric/launcher/heartbeat.h>

#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include <fabric/base/env_reader.h>

namespace fabric {
namespace {

// A line that would be longer counts as a bare heartbeat at the other end.
constexpr std::size_t kLongestLine = 256;

/// The socket of the launcher, found once. A forked child is another process than the one that is watched: silent.
class Channel {
 public:
  static Channel& instance() {
    static Channel channel;
    return channel;
  }

  bool is_open() const { return fd_.load(std::memory_order_relaxed) >= 0; }

  /// One line, in one piece or not at all; false when it was lost because the launcher does not read.
  bool send(const char* line, std::size_t size) noexcept {
    int fd = fd_.load(std::memory_order_relaxed);
    if (fd < 0) return true;
    // What was lost may have opened or closed a section. The launcher forgets them, or it would raise a false alarm.
    if (lost_.load(std::memory_order_relaxed) && !write(fd, "reset\n", 6)) return false;
    lost_.store(false, std::memory_order_relaxed);
    if (no_retry_.exchange(false, std::memory_order_relaxed) && !write(fd, "noretry\n", 8))
      no_retry_.store(true, std::memory_order_relaxed);
    return write(fd, line, size);
  }

  void send_structure(const char* line, std::size_t size) noexcept {
    if (!send(line, size)) lost_.store(true, std::memory_order_relaxed);
  }

  void forbid_retry_later() noexcept { no_retry_.store(true, std::memory_order_relaxed); }

 private:
  Channel() {
    const std::string text = process_env()->get_or("FABRIC_HEARTBEAT_FD", "");
    if (text.empty()) return;
    char* end = nullptr;
    long number = std::strtol(text.c_str(), &end, 10);
    int domain = 0;
    socklen_t size = sizeof domain;
    // The variable may have outlived the descriptor, whose number then belongs to something else.
    if (*end || number < 0 || number > (1 << 20) ||
        getsockopt(static_cast<int>(number), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX)
      return;
    pthread_atfork(nullptr, nullptr, [] { instance().fd_.store(-1, std::memory_order_relaxed); });
    fd_.store(static_cast<int>(number), std::memory_order_relaxed);
  }

  static bool write(int fd, const char* line, std::size_t size) noexcept {
    return ::send(fd, line, size, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(size);
  }

  std::atomic<int> fd_{-1};
  std::atomic<bool> lost_{false}, no_retry_{false};
};

// Not by %f, which writes a comma in some locales. 0 means no limit.
long long in_milliseconds(double seconds) noexcept {
  if (!std::isfinite(seconds) || seconds <= 0) return 0;
  return std::max(1LL, static_cast<long long>(std::min(seconds, 1e9) * 1000));
}

/// Lines are written on the stack: a number needs no allocation, and signals may interrupt anything.
struct Line {
  char text[kLongestLine];
  std::size_t size = 0;

  template <class... Items>
  explicit Line(const char* format, Items... items) noexcept {
    int length = std::snprintf(text, sizeof text, format, items...);
    size = std::min<std::size_t>(length > 0 ? static_cast<std::size_t>(length) : 0, sizeof text - 1);
    if (size > 0 && text[size - 1] != '\n') text[size - 1] = '\n';
  }
};

}  // namespace

void heartbeat() noexcept {
  auto& channel = Channel::instance();
  if (channel.is_open()) channel.send("beat\n", 5);
}

void heartbeat(std::int64_t step) noexcept {
  auto& channel = Channel::instance();
  if (!channel.is_open()) return;
  Line line("step %lld\n", static_cast<long long>(step));
  channel.send(line.text, line.size);
}

void set_heartbeat_timeout(double seconds) noexcept {
  auto& channel = Channel::instance();
  if (!channel.is_open()) return;
  long long limit = in_milliseconds(seconds);
  Line line("timeout %lld.%03lld\n", limit / 1000, limit % 1000);
  channel.send_structure(line.text, line.size);
}

void do_not_retry(std::string_view reason) noexcept {
  auto& channel = Channel::instance();
  if (!channel.is_open()) return;
  Line line("noretry %.*s\n", static_cast<int>(std::min<std::size_t>(reason.size(), 200)), reason.data());
  for (std::size_t i = 0; i + 1 < line.size; ++i)
    if (line.text[i] == '\n') line.text[i] = ' ';
  if (!channel.send(line.text, line.size)) channel.forbid_retry_later();
}

bool has_heartbeat_listener() noexcept { return Channel::instance().is_open(); }

Section::Section(std::string_view name, double seconds) noexcept {
  auto& channel = Channel::instance();
  is_open_ = channel.is_open();
  if (!is_open_) return;
  std::size_t size = std::min(name.size(), kLongestName);
  for (std::size_t i = 0; i < size; ++i) name_[i] = static_cast<unsigned char>(name[i]) <= ' ' ? '_' : name[i];
  if (size == 0) name_[size++] = '?';
  name_[size] = '\0';
  long long limit = in_milliseconds(seconds);
  Line line("section %s %lld.%03lld\n", name_, limit / 1000, limit % 1000);
  channel.send_structure(line.text, line.size);
}

Section::Section(Section&& other) noexcept : is_open_(std::exchange(other.is_open_, false)) {
  if (is_open_) std::memcpy(name_, other.name_, sizeof name_);
}

void Section::close() noexcept {
  if (!std::exchange(is_open_, false)) return;
  Line line("end %s\n", name_);
  Channel::instance().send_structure(line.text, line.size);
}

}  // namespace fabric
