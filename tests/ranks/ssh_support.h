#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "tests/ranks/network_support.h"
#include "tests/ranks/run_support.h"

// A real sshd on machines that are network namespaces, with keys of their own; nothing of the user's ~/.ssh is read.
namespace ssh_support {

/// The machines of a network, of which all but the last can be logged in to; the last is the one where people sit.
class Machines {
 public:
  /// Why there can be none here; empty when all is well.
  static std::string why_not();
  explicit Machines(int hosts);
  ~Machines();
  Machines(const Machines&) = delete;
  Machines& operator=(const Machines&) = delete;

  run_support::Network& network() { return network_; }
  std::string address(int host) const { return network_.address(host); }
  /// The index of the machine where people sit.
  int desk() const { return hosts_; }
  /// For `fabric`: how ssh finds its keys.
  std::vector<std::string> flags() const;
  /// To be run in a child: the machine, under its name m0, m1 … or desk.
  std::function<void()> enter(int machine) const;
  /// The key is no longer let in, or another one than the machine's is expected.
  void refuse_key(int host) const;
  void forget_host(int host) const;
  /// Power is off: the cable is pulled and every process killed.
  void lose(int host);
  /// The processes that serve connections are killed, and sshd goes on.
  void kill_connections(int host) const;
  std::string operator/(const std::string& name) const { return folder_ / name; }

 private:
  void start(int host);
  std::vector<pid_t> processes_on(int machine) const;

  run_support::Folder folder_;
  int hosts_;
  run_support::Network network_;
  std::vector<pid_t> daemons_;
};

}  // namespace ssh_support
