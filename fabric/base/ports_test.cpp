#include "fabric/base/ports_internal.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
#include <fstream>
#include <string>

#include <fstream>
#include <set>
#include <string>

#include "tests/support/catch.h"

using fabric::port_owner;
using fabric::PortReservation;

namespace {

// A listener as a store makes it; -1 when the port cannot be had.
int listen_on(int port) {
  int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_any;
  address.sin6_port = htons(static_cast<std::uint16_t>(port));
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && listen(fd, 1) == 0) return fd;
  close(fd);
  return -1;
}

}  // namespace

TEST_CASE("reserved ports differ and can be listened on", "[ports]") {
  std::string own_name;
  std::getline(std::ifstream("/proc/self/comm"), own_name);
  std::vector<PortReservation> reservations(50);
  std::set<int> ports;
  for (const auto& reservation : reservations) ports.insert(reservation.port());
  CHECK(ports.size() == 50);
  int port = reservations.front().port();
  CHECK_FALSE(port_owner(port));
  int fd = listen_on(port);
  REQUIRE(fd >= 0);
  CHECK(port_owner(port) == "process " + std::to_string(getpid()) + " (" + own_name + ")");
  close(fd);
  CHECK_FALSE(port_owner(port));
}

TEST_CASE("a port that only the system may open is not free", "[ports]") {
  if (geteuid() == 0) return;
  CHECK(port_owner(1).has_value());
}
