#include "launcher/rendezvous/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace fabric::rendezvous {
namespace {

/// More than this unsent means that the other end takes nothing.
constexpr std::size_t kMostUnsent = 4 * kMemberLimit;

void prepare_socket(int fd) {
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // After a cut that healed, the next try should not be as far away as the cut was long. Linux 6.15 has the option.
  constexpr int kRtoMaxMs = 44;
  unsigned milliseconds = 1000;
  setsockopt(fd, IPPROTO_TCP, kRtoMaxMs, &milliseconds, sizeof milliseconds);
}

int bind_and_listen(int family, int port, bool& bound) {
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  int on = 1, off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  auto any = socket_address(family == AF_INET6 ? "::" : "0.0.0.0", port);
  bound = bind(fd, any.get(), any.size) == 0;
  if (bound && listen(fd, 512) == 0) return fd;
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

// Of two that listen at the very same moment the kernel may refuse both: each tries again after a time of its own.
int bind_and_listen(int family, int port) {
  for (int tries = 1;; ++tries) {
    bool bound = false;
    int fd = bind_and_listen(family, port, bound);
    if (fd >= 0 || !bound || errno != EADDRINUSE || tries == 10) return fd;
    usleep(static_cast<useconds_t>(500 * tries + 500 * (gettid() % 16)));
  }
}

}  // namespace

void watch(int epoll, int fd, bool write) {
  epoll_event event{.events = EPOLLIN | (write ? EPOLLOUT : 0u), .data = {.fd = fd}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST) epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

Connection::Connection(int epoll, Descriptor socket, std::string peer)
    : epoll_(epoll), socket_(std::move(socket)), peer_(std::move(peer)) {
  prepare_socket(fd());
  watch(epoll_, fd());
}

void Connection::send(const Message& message) {
  if (is_closed_ || closes_) return;
  out_ += encode_frame(to_tree(message));
  if (out_.size() > kMostUnsent) is_closed_ = true;
  flush();
}

void Connection::flush() {
  while (!out_.empty() && !is_closed_) {
    ssize_t sent = ::send(fd(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0)
      out_.erase(0, static_cast<std::size_t>(sent));
    else if (errno == EAGAIN || errno == EINTR)
      break;
    else
      error_ = errno, out_.clear();  // the reader's side ends it, after all that had come before
  }
  if (out_.empty() && closes_) shutdown(fd(), SHUT_WR);
  if (wants_write_ != !out_.empty()) watch(epoll_, fd(), wants_write_ = !out_.empty());
}

void Connection::pump() {
  flush();
  char buffer[65536];
  for (int i = 0; i < 64 && !is_closed_; ++i) {
    ssize_t size = recv(fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (size > 0)
      reader_.feed({buffer, static_cast<std::size_t>(size)});
    else if (size < 0 && (errno == EAGAIN || errno == EINTR))
      return;
    else
      is_closed_ = true, error_ = error_ ? error_ : size < 0 ? errno : 0;
    if (size > 0 && static_cast<std::size_t>(size) < sizeof buffer) return;
  }
}

std::optional<Message> Connection::next() {
  auto tree = reader_.next();
  if (!tree) return std::nullopt;
  return to_message(*tree);
}

void Connection::close_sending() {
  closes_ = true;
  flush();
}

Descriptor listen_on(int port, bool& taken) {
  taken = false;
  int fd = bind_and_listen(AF_INET6, port);
  if (fd < 0 && errno != EADDRINUSE) fd = bind_and_listen(AF_INET, port);
  if (fd < 0 && errno == EADDRINUSE) {
    taken = true;
    return Descriptor();
  }
  if (fd < 0) throw LaunchError("cannot listen on port " + std::to_string(port) + ": " + std::strerror(errno));
  return above_stdio(fd, "the rendezvous");
}

int port_of(const Descriptor& socket) {
  SocketAddress own;
  own.size = sizeof own.storage;
  getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own.storage), &own.size);
  return ntohs(reinterpret_cast<sockaddr_in*>(&own.storage)->sin_port);  // at the same place for IPv6
}

Descriptor connect_to(const std::string& address, int port) {
  auto target = socket_address(address, port);
  int fd = socket(target.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return Descriptor();
  if (connect(fd, target.get(), target.size) == 0 || errno == EINPROGRESS) return above_stdio(fd, "the rendezvous");
  int error = errno;
  close(fd);
  errno = error;
  return Descriptor();
}

std::pair<Descriptor, Descriptor> connected_pair() {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) above_stdio(-1, "the rendezvous");
  Descriptor one = above_stdio(ends[0], "the rendezvous");
  return {std::move(one), above_stdio(ends[1], "the rendezvous")};
}

}  // namespace fabric::rendezvous
