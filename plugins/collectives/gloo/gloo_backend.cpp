// The only file that sees LibTorch's Gloo header. The wheel ships that header without Gloo's own, so gloo_headers/
// declares what it needs.
#define USE_C10D_GLOO
#include "plugins/collectives/gloo/gloo_backend.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

namespace fabric::collectives {
namespace {

class ClosableGloo : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;
  bool busy() {
    std::lock_guard lock(workMutex_);
    bool any = !workQueue_.empty();
    for (const auto& work : workInProgress_) any = any || work;
    return any;
  }
  void break_connections() {
    for (auto& context : contexts_) context->closeConnections();
  }
};

std::string numeric_address(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  socklen_t size = address->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  return getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

bool is_loopback(const std::string& address) { return address.rfind("127.", 0) == 0 || address == "::1"; }

// The address of this machine from which packets to `host` leave: right where the machine's own name resolves to a
// loopback address, as Debian's does. Connecting a datagram socket sends nothing.
std::string local_address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), "9", &hints, &found) != 0) return "";
  std::string local;
  for (auto* each = found; each && local.empty(); each = each->ai_next) {
    int fd = socket(each->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    if (connect(fd, each->ai_addr, each->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0)
      local = numeric_address(reinterpret_cast<sockaddr*>(&own));
    close(fd);
  }
  freeaddrinfo(found);
  return local;
}

std::string first_outside_address() {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return "";
  std::string found;
  for (auto* each = all; each && found.empty(); each = each->ifa_next)
    if (each->ifa_addr && each->ifa_addr->sa_family == AF_INET && (each->ifa_flags & IFF_UP) &&
        !(each->ifa_flags & IFF_LOOPBACK))
      found = numeric_address(each->ifa_addr);
  freeifaddrs(all);
  return found;
}

std::string own_address(const RankInfo& ranks) {
  if (ranks.num_nodes <= 1 && ranks.world_size == ranks.local_world_size) return "127.0.0.1";
  auto address = local_address_towards(ranks.main_address);
  // Rank 0's own name may lead to its loopback, which the other nodes cannot reach.
  if (is_loopback(address) && ranks.num_nodes > 1) address = first_outside_address();
  return address.empty() ? "127.0.0.1" : address;
}

c10::intrusive_ptr<c10d::ProcessGroupGloo::Options> options_for(const BackendRequest& request) {
  // GLOO_SOCKET_IFNAME is LibTorch's own way to choose an interface; its default knows how to read it.
  if (std::getenv("GLOO_SOCKET_IFNAME")) {
    auto options = c10d::ProcessGroupGloo::Options::create_default(request.timeout);
    options->timeout = request.timeout;
    return options;
  }
  auto options = c10d::ProcessGroupGloo::Options::create(request.timeout);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(own_address(request.ranks)));
  return options;
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendRequest& request) {
  return c10::make_intrusive<ClosableGloo>(request.store, request.rank, request.size, options_for(request));
}

void break_connections(c10d::Backend& backend) {
  if (auto* gloo = dynamic_cast<ClosableGloo*>(&backend)) gloo->break_connections();
}

void release_without_waiting(c10::intrusive_ptr<c10d::Backend> backend) {
  auto* gloo = dynamic_cast<ClosableGloo*>(backend.get());
  if (!gloo) return backend->abort();
  if (!gloo->busy()) return;
  gloo->break_connections();
  std::thread([backend = std::move(backend), gloo] {
    while (gloo->busy()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }).detach();
}

}  // namespace fabric::collectives
