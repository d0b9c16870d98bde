#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>

/// A TCP port of this machine that nobody has now. It lies below the range from which the system gives ports to
/// connections, any of which may come in between.
inline int free_port() {
  // Neighbouring processes begin far from each other.
  static int last = 20000 + getpid() * 37 % 10000;
  for (;;) {
    int port = last = last < 30000 ? last + 1 : 20000;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(fd);
    if (is_free) return port;
  }
}
