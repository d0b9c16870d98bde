#include "plugins/collectives/store/store_sockets.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve_host(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) found = nullptr;
  return {found, freeaddrinfo};
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET)
    return ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24 == 127;
  if (address->sa_family != AF_INET6) return false;
  const auto& six = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&six) || (IN6_IS_ADDR_V4MAPPED(&six) && six.s6_addr[12] == 127);
}

bool is_any(const sockaddr* address) {
  if (address->sa_family == AF_INET)
    return reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr == INADDR_ANY;
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

int port_of_socket(int fd) {
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size);
  return ntohs(own.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(own).sin_port
                                        : reinterpret_cast<sockaddr_in6&>(own).sin6_port);
}

// An empty descriptor, with errno set, where that cannot be.
Descriptor listen_at(const sockaddr* given, socklen_t size, int port, bool six_only) {
  sockaddr_storage address{};
  std::memcpy(&address, given, size);
  (address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                : reinterpret_cast<sockaddr_in6&>(address).sin6_port) =
      htons(static_cast<std::uint16_t>(port));
  Descriptor fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return {};
  int on = 1, only = six_only ? 1 : 0;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.ss_family == AF_INET6) setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd.get(), SOMAXCONN) != 0) {
    int reason = errno;
    fd.reset();
    errno = reason;
  }
  return fd;
}

StoreListeners listen_everywhere(int port) {
  StoreListeners made;
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  auto fd = listen_at(reinterpret_cast<sockaddr*>(&six), sizeof six, port, /*six_only=*/false);
  if (!fd && errno != EADDRINUSE) {
    sockaddr_in four{};
    four.sin_family = AF_INET;
    fd = listen_at(reinterpret_cast<sockaddr*>(&four), sizeof four, port, false);
  }
  // Both kinds of socket take IPv4's.
  if (!fd) return made;
  made.port = port_of_socket(fd.get());
  made.own_address = "127.0.0.1";
  made.sockets.push_back(std::move(fd));
  return made;
}

std::string numeric_address(const sockaddr* address, socklen_t size) {
  char text[NI_MAXHOST] = "";
  return getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

bool wait_for(int fd, short events, steady_clock::time_point until) {
  while (true) {
    auto left = std::chrono::duration_cast<milliseconds>(until - steady_clock::now());
    pollfd item{.fd = fd, .events = events, .revents = 0};
    int ready = poll(&item, 1, static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 1'000'000)));
    if (ready > 0) return true;
    if (ready == 0 && steady_clock::now() >= until) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
}

struct Attempt {
  Descriptor socket;       // of a store that took us in
  std::string refusal;     // its words when it did not
  std::string problem;     // why there was no answer
  bool is_silent = false;  // something took the connection and says nothing
};

// Greets what listens at the other end; all within the time.
void greet(Attempt& attempt, const wire::Greeting& greeting, steady_clock::time_point until) {
  std::string bytes(wire::kMagic);
  wire::write(bytes, greeting);
  int fd = attempt.socket.get();
  auto fail = [&](std::string problem) {
    attempt.problem = std::move(problem);
    attempt.socket.reset();
  };
  if (send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size()))
    return fail("the connection broke");
  std::string answer;
  constexpr std::size_t kLongest = 64 << 10;
  bool too_large = false;
  std::optional<std::string_view> frame;
  while (!(frame = wire::frame_in(answer, kLongest, too_large))) {
    char part[4096];
    if (too_large) return fail("what answers is no store of a job");
    if (!wait_for(fd, POLLIN, until)) {
      attempt.is_silent = true;
      return fail("something took the connection and does not answer");
    }
    auto count = recv(fd, part, sizeof part, 0);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count <= 0) return fail("the connection was closed without an answer");
    answer.append(part, static_cast<std::size_t>(count));
  }
  wire::Reader reader(*frame);
  reader.number();
  auto status = static_cast<wire::Status>(reader.byte());
  if (status == wire::Status::ok && reader.good()) return;
  auto text = reader.text();
  attempt.socket.reset();
  if (!reader.good()) return fail("what answers is no store of a job");
  attempt.refusal = text;
}

Attempt try_port(const std::string& host, int port, const wire::Greeting& greeting, milliseconds timeout) {
  Attempt attempt;
  auto until = steady_clock::now() + timeout;
  auto addresses = resolve_host(host, port);
  if (!addresses) {
    attempt.problem = "the name " + host + " is not known";
    return attempt;
  }
  for (const auto* each = addresses.get(); each; each = each->ai_next) {
    Descriptor fd(socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) continue;
    int result = ::connect(fd.get(), each->ai_addr, each->ai_addrlen), reason = errno;
    if (result != 0 && reason == EINPROGRESS) {
      socklen_t size = sizeof reason;
      if (!wait_for(fd.get(), POLLOUT, until))
        reason = ETIMEDOUT;
      else
        getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &reason, &size);
      result = reason;
    }
    if (result != 0) {
      attempt.problem = std::strerror(reason);
      continue;
    }
    // A port of the system's own choice can connect to itself when nobody listens there.
    sockaddr_storage own{}, other{};
    socklen_t own_size = sizeof own, other_size = sizeof other;
    getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &own_size);
    getpeername(fd.get(), reinterpret_cast<sockaddr*>(&other), &other_size);
    if (own_size == other_size && std::memcmp(&own, &other, own_size) == 0) {
      attempt.problem = "nobody listens";
      continue;
    }
    int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    attempt.socket = std::move(fd);
    attempt.problem.clear();
    greet(attempt, greeting, until);
    return attempt;
  }
  return attempt;
}

std::string place_in_words(const StorePlace& place) {
  auto text = place.address + ":" + std::to_string(place.ports.front());
  return place.ports.size() == 1 ? text : text + " or " + std::to_string(place.ports.size() - 1) + " further ports";
}

}  // namespace

StoreListeners listen_for_store(const std::string& address, int port, bool spans_machines) {
  StoreListeners made;
  auto addresses = resolve_host(address, port);
  bool beyond_loopback = false, any = !addresses;
  for (const auto* each = addresses.get(); each; each = each->ai_next) {
    beyond_loopback |= !is_loopback(each->ai_addr);
    any |= is_any(each->ai_addr);
  }
  // Other machines know this one by another address than its own name gives it.
  if (any || (spans_machines && !beyond_loopback)) return listen_everywhere(port);
  int reason = 0;
  for (const auto* each = addresses.get(); each; each = each->ai_next) {
    auto fd = listen_at(each->ai_addr, each->ai_addrlen, made.port ? made.port : port, /*six_only=*/true);
    if (!fd) {
      reason = errno == EADDRINUSE || reason == 0 ? errno : reason;
      continue;
    }
    made.port = port_of_socket(fd.get());
    if (made.own_address.empty()) made.own_address = numeric_address(each->ai_addr, each->ai_addrlen);
    made.sockets.push_back(std::move(fd));
  }
  // An address that is translated on its way, as a service's in Kubernetes, is none of this machine's.
  if (made.sockets.empty() && reason == EADDRNOTAVAIL && beyond_loopback) return listen_everywhere(port);
  errno = reason;
  return made;
}

std::string refusal_of_store(const std::string& address, int port, const wire::Greeting& greeting,
                             milliseconds timeout) {
  return try_port(address, port, greeting, timeout).refusal;
}

StoreConnection find_store(const StorePlace& place, const wire::Greeting& greeting, milliseconds timeout) {
  // With one port there is nothing better to do than to wait for what listens there.
  constexpr milliseconds kEach{2000};
  bool is_certain = place.ports.size() == 1;
  auto begin = steady_clock::now(), until = begin + timeout;
  auto pause = milliseconds(2);
  std::string problem;
  while (true) {
    for (int port : place.ports) {
      auto left = std::chrono::duration_cast<milliseconds>(until - steady_clock::now());
      auto limit = std::max(milliseconds(1), is_certain ? left : std::min(left, kEach));
      auto attempt = try_port(place.address, port, greeting, limit);
      if (attempt.socket) return {std::move(attempt.socket), port};
      auto there = place.address + ":" + std::to_string(port);
      if (!attempt.refusal.empty() && is_certain)
        throw ConfigError("rank " + std::to_string(greeting.rank) + " cannot join its job at " + there + ": " +
                          attempt.refusal);
      if (!attempt.refusal.empty() || problem.empty() || port == place.ports.front())
        problem = there + ": " + (attempt.refusal.empty() ? attempt.problem : attempt.refusal);
    }
    if (steady_clock::now() + pause >= until) break;
    std::this_thread::sleep_for(pause);
    // Refusals on one machine cost nothing, so this asks often.
    pause = std::min(pause * 2, milliseconds(50));
  }
  throw TimeoutError(static_cast<int>(greeting.rank), "connecting to the job's store at " + place_in_words(place),
                     std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin),
                     "Rank 0 serves it and did not come (" + problem + ")");
}

}  // namespace fabric::collectives
