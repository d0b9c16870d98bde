#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/rendezvous/connection.h"
#include "launcher/rendezvous/leader.h"

namespace fabric::rendezvous {

/// What listens on a node's port: answers who is there, and carries the host's messages as long as this node hosts.
/// Whoever does not prove to be of the job is dropped; nobody can make it keep much memory, or wait.
class Server {
 public:
  using Say = std::function<void(const std::string&)>;
  Server(int epoll, const Key& job_key, std::string own_id, Say say);
  void set_key(const Key& job_key) { job_key_ = job_key; }
  void listen(Descriptor listener);
  /// One end of a connection within this process.
  void adopt(Descriptor end);

  void begin_hosting(std::unique_ptr<Leader> host) { leader_ = std::move(host); }
  Leader* leader() { return leader_.get(); }
  /// Who hosts, if not this node; told to those who ask here.
  void set_other_host(const std::optional<NodeInfo>& host) { other_host_ = host; }
  /// Gives hosting up: connections close, and nobody is let in any more unless `keeps_listening`.
  void resign(bool keeps_listening);
  /// A host of the same job that took over earlier told us of itself.
  std::optional<NodeInfo> take_moved() { return std::exchange(moved_, std::nullopt); }

  /// True when the descriptor is one of its own.
  bool handle(int fd, Time now);
  void tick(Time now);
  Time deadline() const;
  /// Nobody else is connected.
  bool is_deserted() const;

 private:
  struct Guest {
    std::unique_ptr<Connection> connection;
    Time since;
    std::string id;  // once it has joined
    bool is_local = false, leaves = false;
    bool is_stranger() const { return !is_local && !connection->is_trusted(); }
  };
  void accept(int listener, Time now);
  void keep_few_strangers();
  bool drop_oldest_stranger();
  void rest(Time now);
  void take(Guest& guest, Time now);
  void answer(Guest& guest, const Message& message, Time now);
  void greet(Guest& guest, const Hello& hello, Time now);
  void drop(Guest& guest, const std::string& why);
  void deliver();
  void sweep(Time now);

  int epoll_;
  Key job_key_;
  std::string own_id_;
  Say say_;
  std::vector<WatchedSocket> listeners_;
  std::optional<Time> rests_until_;  // for want of descriptors
  std::map<int, Guest> guests_;      // by descriptor
  std::unique_ptr<Leader> leader_;
  std::optional<NodeInfo> other_host_, moved_;
  int complaints_ = 0;
};

/// Connections that may be open of those who have not shown yet that they are of the job.
inline constexpr std::size_t kMostStrangers = 128;

}  // namespace fabric::rendezvous
