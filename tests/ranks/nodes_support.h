#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"
#include "tests/support/free_port.h"

// Several launchers of one job on this machine, and sockets to disturb them with.
namespace nodes_support {

using Words = std::vector<std::string>;

inline int listening_socket(int& port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
  listen(fd, 5);
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  port = ntohs(address.sin_port);
  return fd;
}

/// A connection to a port of this machine, over which `bytes` were sent.
inline int connect_and_send(int port, const std::string& bytes = "", const char* to = "127.0.0.1") {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  inet_pton(AF_INET, to, &address.sin_addr);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    close(fd);
    return -1;
  }
  [[maybe_unused]] auto sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  return fd;
}

/// Launchers of one job, which meet at a port of this machine.
class Nodes {
 public:
  Nodes(const std::string& nnodes, const std::string& script, const Words& flags = {})
      : nnodes_(nnodes), script_(script), flags_(flags), port_(free_port()) {}
  std::string conf = "heartbeat_interval=0.5,last_call_timeout=0.3,late_join_delay=0.2,join_timeout=15";
  run_support::Variables variables;  // of all launchers

  run_support::Job& start(const std::string& host, const Words& flags = {}, int workers = 1) {
    Words words{"run",
                "-n",
                std::to_string(workers),
                "--nnodes",
                nnodes_,
                "--rdzv-endpoint",
                "localhost:" + std::to_string(port_),
                "--rdzv-id",
                "a job",
                "--rdzv-conf",
                conf,
                "--grace",
                "0.5"};
    words.insert(words.end(), flags_.begin(), flags_.end());
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), {"sh", "-c", script_});
    auto own = variables;
    own["SLURMD_NODENAME"] = host;
    jobs_.push_back(std::make_unique<run_support::Job>(words, own));
    return *jobs_.back();
  }
  int port() const { return port_; }

 private:
  std::string nnodes_, script_;
  Words flags_;
  int port_;
  std::vector<std::unique_ptr<run_support::Job>> jobs_;
};

inline const std::string kPlace =
    "echo r$RANK/$WORLD_SIZE l$LOCAL_RANK g$GROUP_RANK/$GROUP_WORLD_SIZE a$TORCHELASTIC_RESTART_COUNT; ";
inline const std::string kWait = kPlace + "exec sleep 100";

}  // namespace nodes_support
