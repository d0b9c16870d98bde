#include "fabric/base/ports_internal.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include <fabric/base/error.h>

#include "fabric/base/files_internal.h"

namespace fabric {
namespace {

// Binds every address of the machine, as a store does; returns the socket or -1 and errno.
int bind_any(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int port_of(int fd) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.sin_port);
}

// Inodes of the sockets that listen on the port.
std::set<std::string> listeners(int port) {
  std::set<std::string> inodes;
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream file(table);
    std::string line;
    std::getline(file, line);
    while (std::getline(file, line)) {
      std::istringstream words(line);
      std::string slot, local, remote, state, queues, timer, retransmits, user, timeout, inode;
      words >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> user >> timeout >> inode;
      auto colon = local.rfind(':');
      if (state != "0A" || colon == std::string::npos) continue;
      if (std::stoi(local.substr(colon + 1), nullptr, 16) == port) inodes.insert("socket:[" + inode + "]");
    }
  }
  return inodes;
}

std::string find_owner(const std::set<std::string>& sockets) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  for (const auto& process : fs::directory_iterator("/proc", ignored)) {
    auto pid = process.path().filename().string();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    std::error_code unreadable;
    fs::directory_iterator descriptors(process.path() / "fd", unreadable);
    for (; !unreadable && descriptors != fs::directory_iterator(); descriptors.increment(unreadable)) {
      auto target = fs::read_symlink(descriptors->path(), ignored).string();
      if (sockets.count(target)) return "process " + pid + " (" + first_line(process.path() / "comm") + ")";
    }
  }
  return "a process that this user may not see";
}

}  // namespace

PortReservation::PortReservation() : socket_(bind_any(0)) {
  if (socket_ < 0) throw LaunchError(std::string("no free TCP port: ") + std::strerror(errno));
  port_ = port_of(socket_);
}

PortReservation::~PortReservation() {
  if (socket_ >= 0) close(socket_);
}

std::optional<std::string> port_owner(int port) {
  int fd = bind_any(port);
  if (fd >= 0) {
    // Two sockets may be bound to one port as long as none listens, so only a try to listen tells.
    bool free = listen(fd, 1) == 0;
    close(fd);
    if (free) return std::nullopt;
  } else if (errno != EADDRINUSE) {
    return std::string("the system, which refuses it: ") + std::strerror(errno);
  }
  return find_owner(listeners(port));
}

}  // namespace fabric
