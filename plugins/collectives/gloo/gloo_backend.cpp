#include "plugins/collectives/gloo/gloo_backend.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include <fabric/base/log.h>

#include "fabric/torch/gloo_internal.h"
#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/gloo/gloo_faults.h"
#include "plugins/collectives/store/job_store.h"

namespace fabric::collectives {
namespace {

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
  if (is_on_one_machine(ranks)) return "127.0.0.1";
  auto address = local_address_towards(ranks.main_address);
  // Rank 0's own name may lead to its loopback, which the other nodes cannot reach.
  if (is_loopback(address) && ranks.num_nodes > 1) address = first_outside_address();
  return address.empty() ? "127.0.0.1" : address;
}

class GlooBackend : public CollectiveBackend {
 public:
  using CollectiveBackend::CollectiveBackend;
  void break_connections() override { torch_gloo::close_connections(*c10d()); }
  // Freeing it waits for operations that are still in flight: a thread holds it until they are over.
  void close() override {
    if (!torch_gloo::is_busy(*c10d())) return;
    break_connections();
    std::thread([gloo = c10d()] {
      while (torch_gloo::is_busy(*gloo)) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }).detach();
  }
};

}  // namespace

std::shared_ptr<CollectiveBackend> make_gloo(const BackendRequest& request) {
  static const bool catches = catches_gloo_faults();
  if (!catches) log::debug("messages that do not fit end the process: LibTorch was loaded before this library");
  // GLOO_SOCKET_IFNAME is LibTorch's own way to choose an interface; its default knows how to read it.
  auto address = request.env->has("GLOO_SOCKET_IFNAME") ? "" : own_address(request.ranks);
  return std::make_shared<GlooBackend>(
      torch_gloo::make(request.store, request.rank, request.size, request.timeout, address));
}

BackendKind gloo_kind() {
  return {.make = make_gloo, .suits = [](const RankInfo&, c10::Device) { return 10; }};
}

}  // namespace fabric::collectives
