#pragma once

#include <signal.h>

#include <chrono>
#include <deque>
#include <optional>
#include <string>

#include "launcher/os/descriptor.h"
#include "launcher/run/hosts/packet.h"

namespace fabric::run {

/// The far end of a connection that `fabric run --hosts` made: packets come in, signs of life among them, and signals
/// that this process gets as if they had been sent here. When it is closed, or silent for too long (a network that is
/// cut closes nothing), the launcher at the other end is gone, and so shall be all that it started.
class Lifeline {
 public:
  explicit Lifeline(Descriptor input);
  /// Readable when `advance` has something to do, be it only that time has passed.
  int fd() const { return epoll_.get(); }
  void advance();
  std::optional<Packet> take_packet();
  bool is_gone() const { return !why_.empty(); }
  /// Why it is gone.
  const std::string& why() const { return why_; }
  /// A signal of this number came over it; every other host gets it as well.
  bool has_brought(int number) const { return sigismember(&brought_, number) == 1; }
  void set_patience(std::chrono::milliseconds patience);

 private:
  using Clock = std::chrono::steady_clock;
  void read_all();
  void take(Packet packet);
  void lose(const std::string& why);
  void arm(std::chrono::nanoseconds left);

  Descriptor input_, epoll_, timer_;
  PacketReader reader_;
  sigset_t brought_;
  std::deque<Packet> packets_;
  std::chrono::milliseconds patience_{15000};
  Clock::time_point heard_ = Clock::now();
  std::string why_;
};

}  // namespace fabric::run
