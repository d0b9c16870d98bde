#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

// Machines that are network namespaces, joined by a switch whose ports can be pulled. Needs root and the program `ip`.
namespace run_support {

class Network {
 public:
  /// Why there can be none here; empty when all is well.
  static std::string why_not();
  /// Why machines cannot have files /etc/hosts of their own; empty when they can.
  static std::string why_no_hosts();
  enum Kind { v4, v6_only };
  explicit Network(int nodes, Kind kind = v4);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  /// To be run in a child: it is on that machine then, whose name is `host`. `hosts` is the machine's /etc/hosts.
  std::function<void()> enter(int node, const std::string& host = "", const std::string& hosts = "") const;
  std::string address(int node) const;
  /// The process that keeps the machine's network, and does nothing else.
  pid_t holder(int node) const { return holders_[static_cast<std::size_t>(node) + 1]; }
  /// Pulls and plugs the cable. Nobody is told: packets are lost.
  void cut(int node);
  void heal(int node);
  /// What these two send to each other is refused; all others reach both.
  void part(int one, int other);
  /// Few bytes a second: what is sent arrives late.
  void slow_down(int node);
  /// A second interface with an address that no other node can reach.
  void add_dead_interface(int node, const std::string& address);

 private:
  void in_namespace(int holder, const std::string& commands) const;
  Kind kind_;
  std::vector<pid_t> holders_;  // of the switch, then of the nodes
};

}  // namespace run_support
