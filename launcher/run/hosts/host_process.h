#pragma once

#include <poll.h>
#include <sys/types.h>

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/os/descriptor.h"
#include "launcher/os/lines.h"
#include "launcher/run/console.h"
#include "launcher/run/hosts/packet.h"

namespace fabric::run {

/// What starts this launcher's part on a host.
struct HostStart {
  std::vector<std::string> words;              // ssh, or this program itself
  std::string first_line;                      // to its stdin; empty: it needs none
  std::shared_ptr<const std::string> program;  // sent when the far end asks for it
};

/// One connection to a host: the process (ssh, or the launcher itself where the host is this machine) and its three
/// streams. Packets go down; lines of ranks come up, whole, and packets between them. Never waits.
class HostProcess {
 public:
  using Clock = std::chrono::steady_clock;
  /// Throws LaunchError when no process can be made.
  HostProcess(std::string name, const HostStart& start, std::string mark, Console& console);
  ~HostProcess();
  HostProcess(const HostProcess&) = delete;
  HostProcess& operator=(const HostProcess&) = delete;

  const std::string& name() const { return name_; }
  void send(const Packet& packet);
  /// A sign of life, unless what was sent before is still on its way.
  void beat();
  std::optional<Packet> take_packet();
  /// The far end reads packets now, and what it writes is shown. Before that all it writes is kept as `notes`.
  void begin_showing() { shows_ = true; }
  /// Puts the host's name before the far launcher's own lines.
  void name_lines() { names_lines_ = true; }

  void add_to(std::vector<pollfd>& entries) const;
  /// Reads and writes what can be without waiting.
  void advance();
  /// Closes its stdin, which ends everything there.
  void hang_up();
  void kill_now() const;
  /// The process has ended, and all that it wrote has been taken.
  bool is_over() const { return status_.has_value() && !output_.pipe && !error_.pipe; }
  /// Its exit code; 128 + n for signal n.
  int code() const { return *status_; }
  /// The last lines that ssh and the far shell wrote.
  std::string notes() const;
  Clock::time_point heard() const { return heard_; }
  /// Nothing more is read since nobody takes it here.
  bool is_held_back() const;

 private:
  struct Stream {
    Descriptor pipe;
    Sink* sink = nullptr;
    Lines lines;
    int number = 1;
  };
  void start(const HostStart& start);
  void write_some();
  void read_some(Stream& stream);
  void take_lines(Stream& stream, std::string_view text);
  void show(Stream& stream, const std::string& lines);
  void reap();

  std::string name_, mark_;
  Console& console_;
  pid_t pid_ = -1;
  Descriptor process_, input_;
  Stream output_, error_;
  std::string unsent_;
  std::shared_ptr<const std::string> program_;
  std::size_t program_sent_ = 0;
  bool sends_program_ = false, shows_ = false, names_lines_ = false;
  std::deque<Packet> packets_;
  std::deque<std::string> notes_;
  std::optional<int> status_;
  Clock::time_point heard_ = Clock::now();
};

}  // namespace fabric::run
