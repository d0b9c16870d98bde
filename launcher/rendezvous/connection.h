#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "launcher/os/descriptor.h"
#include "launcher/rendezvous/addresses.h"
#include "launcher/rendezvous/message.h"

namespace fabric::rendezvous {

/// Adds a descriptor to an epoll, or changes what it is watched for. Its number comes back as the event's data.
void watch(int epoll, int fd, bool write = false);

/// One TCP connection that carries messages. Nothing here waits.
class Connection {
 public:
  /// Takes a connected socket, or one whose connection is under way.
  Connection(int epoll, Descriptor socket, std::string peer);
  int fd() const { return socket_.get(); }
  const std::string& peer() const { return peer_; }
  void set_limit(std::size_t bytes) { reader_.set_limit(bytes); }

  /// Queues a message and sends what can be sent.
  void send(const Message& message);
  /// Reads and writes what can be; then `next` until it has nothing.
  void pump();
  /// Throws FrameError for what is no message.
  std::optional<Message> next();
  /// The other end is gone, and all that it said has been read.
  bool is_closed() const { return is_closed_; }
  /// errno of how it ended; 0: in good order.
  int error() const { return error_; }
  bool is_flushed() const { return out_.empty(); }
  /// No more messages will be sent; the other end sees it once it has got all.
  void close_sending();

 private:
  void flush();
  int epoll_;
  Descriptor socket_;
  std::string peer_, out_;
  FrameReader reader_;
  int error_ = 0;
  bool is_closed_ = false, wants_write_ = false, closes_ = false;
};

/// A socket that listens on a port of all addresses, IPv6 too where the system has it. 0: a free one. Throws
/// LaunchError; `taken` is set and nothing thrown when the port is in use.
Descriptor listen_on(int port, bool& taken);
int port_of(const Descriptor& socket);
/// A socket that connects to a numeric address. Empty with errno when that fails at once.
Descriptor connect_to(const std::string& address, int port);
/// Two ends of one connection within this process.
std::pair<Descriptor, Descriptor> connected_pair();

}  // namespace fabric::rendezvous
