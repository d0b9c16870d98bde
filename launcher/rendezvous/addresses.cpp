#include "launcher/rendezvous/addresses.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

#include "launcher/os/descriptor.h"
#include "launcher/os/signal_mask.h"

namespace fabric::rendezvous {
namespace {

struct Interface {
  std::string name, address;
  bool is_loopback = false, is_v6 = false, is_of_link = false;
};

std::string numeric(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  const void* bytes = address->sa_family == AF_INET
                          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(address)->sin_addr)
                          : &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return inet_ntop(address->sa_family, bytes, text, sizeof text) ? text : "";
}

std::vector<Interface> interfaces() {
  std::vector<Interface> all;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return all;
  std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  for (auto* at = list; at; at = at->ifa_next) {
    if (!at->ifa_addr || !(at->ifa_flags & IFF_UP)) continue;
    int family = at->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    bool is_of_link =
        family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(at->ifa_addr)->sin6_addr);
    all.push_back(
        {at->ifa_name, numeric(at->ifa_addr), (at->ifa_flags & IFF_LOOPBACK) != 0, family == AF_INET6, is_of_link});
  }
  auto order = [](const Interface& one) { return one.is_loopback * 2 + one.is_v6; };
  std::stable_sort(all.begin(), all.end(),
                   [&](const Interface& one, const Interface& other) { return order(one) < order(other); });
  return all;
}

// In the child: one address a line, or "!" and the reason.
std::string ask_resolver(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (int error = getaddrinfo(host.c_str(), nullptr, &hints, &found)) return std::string("!") + gai_strerror(error);
  std::string text;
  for (auto* at = found; at; at = at->ai_next)
    if (at->ai_family == AF_INET || at->ai_family == AF_INET6) text += numeric(at->ai_addr) + "\n";
  return text;
}

std::string read_all(int fd, std::chrono::steady_clock::time_point end) {
  std::string text;
  for (;;) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd entry{fd, POLLIN, 0};
    if (left <= 0 || poll(&entry, 1, static_cast<int>(left)) <= 0) return "!it did not answer in time";
    char buffer[4096];
    ssize_t size = read(fd, buffer, sizeof buffer);
    if (size == 0) return text;
    if (size > 0) text.append(buffer, static_cast<std::size_t>(size));
  }
}

}  // namespace

std::vector<std::string> own_addresses(const std::string& iface, const std::string& local_addr) {
  std::vector<std::string> addresses, names;
  std::string known;
  for (const auto& one : interfaces()) {
    // An address of one link says nothing without the name that the link has on the other machine.
    if (one.is_of_link) continue;
    known += (known.empty() ? "" : ", ") + one.name + " " + one.address;
    names.push_back(one.name);
    bool is_wanted = iface.empty() ? local_addr.empty() : one.name == iface;
    if (is_wanted) addresses.push_back(one.address);
  }
  if (!iface.empty() && addresses.empty())
    throw ConfigError("--iface " + iface + ": there is no such interface with an address" +
                      (nearest_name(iface, names).empty() ? "" : "; did you mean " + nearest_name(iface, names) + "?") +
                      " There are: " + known);
  if (local_addr.empty()) return addresses;
  std::string problem;
  for (const auto& address : resolve(local_addr, std::chrono::seconds(10), problem))
    if (iface.empty() || std::find(addresses.begin(), addresses.end(), address) != addresses.end()) return {address};
  throw ConfigError("--local-addr " + local_addr + ": " +
                    (problem.empty() ? "it is none of --iface " + iface : problem) + ". There are: " + known);
}

std::vector<std::string> resolve(const std::string& host, std::chrono::milliseconds limit, std::string& problem) {
  problem.clear();
  if (socket_address(host, 1).size > 0) return {host};
  auto pipe = make_pipe();
  pid_t pid = fork();
  if (pid == 0) {
    unblock_all();
    auto text = ask_resolver(host);
    [[maybe_unused]] auto written = write(pipe.write.get(), text.data(), text.size());
    _exit(0);
  }
  pipe.write.reset();
  auto text = pid < 0 ? "!" + std::string(std::strerror(errno))
                      : read_all(pipe.read.get(), std::chrono::steady_clock::now() + limit);
  if (pid > 0) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  std::vector<std::string> addresses;
  if (text.starts_with("!")) {
    problem = "the name " + host + " cannot be resolved: " + text.substr(1);
    return addresses;
  }
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) addresses.push_back(line);
  if (addresses.empty()) problem = "the name " + host + " has no address";
  return addresses;
}

bool is_own_host(const std::string& host, const std::vector<std::string>& addresses) {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  if (host == name || host == "localhost") return true;
  auto own = interfaces();
  return std::any_of(addresses.begin(), addresses.end(), [&](const std::string& address) {
    bool is_loopback = address.starts_with("127.") || address == "::1";
    return is_loopback || std::any_of(own.begin(), own.end(), [&](const Interface& one) {
             return address == (one.is_of_link ? one.address + "%" + one.name : one.address);
           });
  });
}

SocketAddress socket_address(const std::string& address, int port) {
  SocketAddress made;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&made.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&made.storage);
  if (inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<std::uint16_t>(port));
    made.size = sizeof *v4;
    return made;
  }
  // fe80::1%eth0: an address that means something on one link alone.
  auto percent = address.find('%');
  auto link = percent == std::string::npos ? 0 : if_nametoindex(address.c_str() + percent + 1);
  if (percent != std::string::npos && link == 0) return made;
  if (inet_pton(AF_INET6, address.substr(0, percent).c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_scope_id = link;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<std::uint16_t>(port));
    made.size = sizeof *v6;
  }
  return made;
}

std::string with_port(const std::string& address, int port) {
  bool is_v6 = address.find(':') != std::string::npos;
  return (is_v6 ? "[" + address + "]" : address) + ":" + std::to_string(port);
}

std::string peer_name(int fd) {
  SocketAddress peer;
  peer.size = sizeof peer.storage;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer.storage), &peer.size) != 0) return "a closed connection";
  int family = peer.storage.ss_family;
  if (family != AF_INET && family != AF_INET6) return "this node";
  auto text = numeric(peer.get());
  return text.starts_with("::ffff:") ? text.substr(7) : text;
}

}  // namespace fabric::rendezvous
