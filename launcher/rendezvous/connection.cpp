#include "launcher/rendezvous/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

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

int bind_and_listen(const SocketAddress& address, bool& bound) {
  int family = address.storage.ss_family;
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  int on = 1, off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  bound = bind(fd, address.get(), address.size) == 0;
  if (bound && listen(fd, 512) == 0) return fd;
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

// Of two that listen at the very same moment the kernel may refuse both: each tries again after a time of its own.
int bind_and_listen(const SocketAddress& address) {
  for (int tries = 1;; ++tries) {
    bool bound = false;
    int fd = bind_and_listen(address, bound);
    if (fd >= 0 || !bound || errno != EADDRINUSE || tries == 10) return fd;
    usleep(static_cast<useconds_t>(500 * tries + 500 * (gettid() % 16)));
  }
}

}  // namespace

void watch(int epoll, int fd, bool write) {
  epoll_event event{.events = EPOLLIN | (write ? EPOLLOUT : 0u), .data = {.fd = fd}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST) epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

WatchedSocket::WatchedSocket(int epoll, Descriptor socket) : epoll_(epoll), socket_(std::move(socket)) {
  watch(epoll_, fd());
}

WatchedSocket& WatchedSocket::operator=(WatchedSocket&& other) noexcept {
  end();
  epoll_ = other.epoll_;
  socket_ = std::move(other.socket_);
  return *this;
}

void WatchedSocket::pause() { epoll_ctl(epoll_, EPOLL_CTL_DEL, fd(), nullptr); }

void WatchedSocket::resume() { watch(epoll_, fd()); }

void WatchedSocket::end() {
  if (!socket_) return;
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd(), nullptr);
  shutdown(fd(), SHUT_RDWR);
  socket_.reset();
}

Connection::Connection(int epoll, Descriptor socket, std::string peer, Handshake::Role role, const Key& job_key)
    : socket_(epoll, std::move(socket)), epoll_(epoll), peer_(std::move(peer)), handshake_(role, job_key) {
  prepare_socket(fd());
  go_on();
}

void Connection::send(const Message& message) {
  if (is_closed_ || closes_) return;
  if (writer_)
    out_ += writer_->encode(to_tree(message));
  else
    waiting_.push_back(message);
  if (out_.size() > kMostUnsent) is_closed_ = true;
  flush();
}

// As far as the two ends have come with showing who they are.
void Connection::go_on() {
  out_ += handshake_.take_output();
  if (is_trusted() && !writer_) {
    writer_.emplace(handshake_.sending_key());
    reader_.emplace(handshake_.receiving_key());
    for (const auto& message : std::exchange(waiting_, {})) out_ += writer_->encode(to_tree(message));
  }
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
  if (is_flushed() && closes_) shutdown(fd(), SHUT_WR);
  if (wants_write_ != !out_.empty()) watch(epoll_, fd(), wants_write_ = !out_.empty());
}

void Connection::pump() {
  flush();
  for (int i = 0; i < 64 && !is_closed_ && read_some(); ++i) continue;
}

// True when there may be more.
bool Connection::read_some() {
  char buffer[65536];
  // Of a stranger no more is taken than the handshake needs, and of one that has failed nothing is kept.
  bool shows_itself = handshake_.state() == Handshake::State::running;
  auto room = shows_itself ? handshake_.wanted() : sizeof buffer;
  ssize_t size = recv(fd(), buffer, room, MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (size <= 0) {
    is_closed_ = true;
    error_ = error_ ? error_ : size < 0 ? errno : 0;
    return false;
  }
  std::string_view bytes(buffer, static_cast<std::size_t>(size));
  if (shows_itself) {
    handshake_.feed(bytes);
    go_on();
    return true;
  }
  if (reader_) reader_->feed(bytes);
  return bytes.size() == sizeof buffer;
}

std::optional<Message> Connection::next() {
  if (!reader_) return std::nullopt;
  auto tree = reader_->next();
  if (!tree) return std::nullopt;
  return to_message(*tree);
}

void Connection::close_sending() {
  closes_ = true;
  if (!is_trusted()) waiting_.clear();
  flush();
}

std::vector<Descriptor> listen_on(const std::vector<std::string>& addresses, int port, bool& taken) {
  std::vector<Descriptor> sockets;
  int error = 0, wanted = port;
  taken = false;
  auto add = [&](const std::string& address) {
    int fd = bind_and_listen(socket_address(address, wanted));
    if (fd < 0) return error = errno, false;
    sockets.push_back(above_stdio(fd, "the rendezvous"));
    if (wanted == 0) wanted = port_of(sockets.back());
    return true;
  };
  if (addresses.empty() && !add("::") && error != EADDRINUSE) add("0.0.0.0");
  for (const auto& address : addresses) {
    if (add(address) || error != EADDRINUSE) continue;
    sockets.clear();
    break;
  }
  taken = sockets.empty() && error == EADDRINUSE;
  if (sockets.empty() && !taken)
    throw LaunchError("cannot listen on port " + std::to_string(port) + ": " + std::strerror(error));
  return sockets;
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
