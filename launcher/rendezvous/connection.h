#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "launcher/os/descriptor.h"
#include "launcher/rendezvous/addresses.h"
#include "launcher/rendezvous/handshake.h"
#include "launcher/rendezvous/message.h"

namespace fabric::rendezvous {

/// Adds a descriptor to an epoll, or changes what it is watched for. Its number comes back as the event's data.
void watch(int epoll, int fd, bool write = false);

/// A socket that an epoll watches. Its end takes it off the epoll's list and shuts it down before it closes it: a copy
/// that a forked process has would keep it on the list, closed, and make every wait return at once.
class WatchedSocket {
 public:
  WatchedSocket(int epoll, Descriptor socket);
  ~WatchedSocket() { end(); }
  WatchedSocket(WatchedSocket&& other) noexcept = default;
  WatchedSocket& operator=(WatchedSocket&& other) noexcept;
  int fd() const { return socket_.get(); }
  /// Stops watching it for a while, and goes on.
  void pause();
  void resume();

 private:
  void end();
  int epoll_;
  Descriptor socket_;
};

/// One TCP connection that carries messages, once both ends have shown that they are of the same job. Nothing here
/// waits.
class Connection {
 public:
  /// Takes a connected socket, or one whose connection is under way.
  Connection(int epoll, Descriptor socket, std::string peer, Handshake::Role role, const Key& job_key);
  int fd() const { return socket_.fd(); }
  const std::string& peer() const { return peer_; }
  Handshake::State handshake() const { return handshake_.state(); }
  /// The other end is of our job.
  bool is_trusted() const { return handshake_.state() == Handshake::State::done; }

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
  bool is_flushed() const { return out_.empty() && waiting_.empty(); }
  /// No more messages will be sent; the other end sees it once it has got all.
  void close_sending();

 private:
  bool read_some();
  void go_on();
  void flush();
  WatchedSocket socket_;
  int epoll_;
  std::string peer_, out_;
  Handshake handshake_;
  std::vector<Message> waiting_;  // until the other end is known
  std::optional<FrameWriter> writer_;
  std::optional<FrameReader> reader_;
  int error_ = 0;
  bool is_closed_ = false, wants_write_ = false, closes_ = false;
};

/// Sockets that listen on one port of these addresses, of which those that this machine lacks are left out; without any
/// in the list: one socket for all addresses, IPv6 too where the system has it. 0: a free port. Throws LaunchError;
/// when the port is in use, `taken` is set and nothing comes back.
std::vector<Descriptor> listen_on(const std::vector<std::string>& addresses, int port, bool& taken);
int port_of(const Descriptor& socket);
/// A socket that connects to a numeric address. Empty with errno when that fails at once.
Descriptor connect_to(const std::string& address, int port);
/// Two ends of one connection within this process.
std::pair<Descriptor, Descriptor> connected_pair();

}  // namespace fabric::rendezvous
