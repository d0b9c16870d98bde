#pragma once

#include <optional>
#include <string>

namespace fabric {

/// A TCP port of this machine that no other process is given as long as the reservation lives; a listener that sets
/// SO_REUSEADDR, as stores do, can still bind it.
class PortReservation {
 public:
  /// Takes a free port. Throws LaunchError when there is none.
  PortReservation();
  ~PortReservation();
  PortReservation(PortReservation&& other) noexcept : port_(other.port_), socket_(other.socket_) { other.socket_ = -1; }
  PortReservation(const PortReservation&) = delete;
  PortReservation& operator=(const PortReservation&) = delete;
  PortReservation& operator=(PortReservation&&) = delete;
  int port() const { return port_; }

 private:
  int port_ = 0;
  int socket_ = -1;
};

/// Nothing when a listener can bind the port; otherwise who holds it, as far as this user may see: "process 12 (name)".
std::optional<std::string> port_owner(int port);

}  // namespace fabric
