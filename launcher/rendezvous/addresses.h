#pragma once

#include <sys/socket.h>

#include <chrono>
#include <string>
#include <vector>

namespace fabric::rendezvous {

/// Numeric addresses under which others may reach this machine, the best first: IPv4, then IPv6, then the loopback,
/// which serves other launchers on the same machine. Only those of `iface` if it is given; only `local_addr` (a name is
/// resolved) if that is. Throws ConfigError listing what there is.
std::vector<std::string> own_addresses(const std::string& iface, const std::string& local_addr);

/// Numeric addresses of a host. Asks in a process of its own, since the system's resolver knows no time limit. Empty
/// when there are none, with the reason in `problem`.
std::vector<std::string> resolve(const std::string& host, std::chrono::milliseconds limit, std::string& problem);

/// Whether a host of these addresses is this machine.
bool is_own_host(const std::string& host, const std::vector<std::string>& addresses);

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
/// From a numeric address; size 0 when it is none.
SocketAddress socket_address(const std::string& address, int port);
/// "10.0.0.1:29400", "[fd00::1]:29400".
std::string with_port(const std::string& address, int port);
/// Of the other end of a connection.
std::string peer_name(int fd);

}  // namespace fabric::rendezvous
