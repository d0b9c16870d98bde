#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/run/console.h"
#include "launcher/run/hosts/host_messages.h"
#include "launcher/run/hosts/host_process.h"
#include "launcher/run/hosts/ssh_command.h"

namespace fabric::run {

/// One host of the group.
struct Member {
  enum State {
    starting,  // ssh connects, or a program is on its way
    ready,     // its launcher waits for a job
    working,
    ended,   // and said how
    failed,  // never became ready
    lost,    // the connection went while it worked
  };
  Host host;
  std::unique_ptr<HostProcess> process;
  bool is_here = false;  // reached without ssh
  State state = starting;
  std::optional<HostHello> hello;
  std::optional<HostAnswer> answer;
  std::string problem;  // of one that failed or was lost
  int code = 0;         // of one that ended
  bool is_settled() const { return state == ended || state == failed || state == lost; }
};

/// Connections to several hosts: over ssh, or without it to the launcher of this machine itself. Each host is asked for
/// its launcher of the same version.
class HostGroup {
 public:
  using Clock = HostProcess::Clock;
  /// `copies`: this program goes along. Throws LaunchError when it cannot be read.
  HostGroup(const std::vector<Host>& hosts, const SshSettings& ssh, bool copies, Console& console);

  std::vector<Member>& members() { return members_; }
  int count(Member::State state) const;
  /// Every process has ended, and all it wrote is written.
  bool is_over() const;
  /// Until something can be read or written, a signal comes, or the time is over.
  void wait(int signals, std::chrono::milliseconds limit);
  /// Reads and writes, and takes note of what the hosts say; those that answer too late fail.
  void advance();
  void beat();
  void send_to_all(const Packet& packet);
  void hang_up();
  void kill_all();

 private:
  void take(Member& member, const Packet& packet);
  void take_hello(Member& member, const HostHello& hello);
  void check_end(Member& member);
  void fail(Member& member, const std::string& problem);

  std::string mark_;
  Console& console_;
  std::vector<Member> members_;
};

}  // namespace fabric::run
