#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabric/base/ports_internal.h"
#include "launcher/os/exit_codes.h"
#include "launcher/rendezvous/liveness_probes.h"
#include "launcher/rendezvous/server.h"

namespace fabric::rendezvous {

struct NodeSetup {
  std::vector<std::string> endpoint_hosts;  // names or addresses of which each may lead to the host
  std::vector<int> ports;                   // of which the host takes the first that is free; the others look at all
  std::optional<bool> hosts;                // nothing: whoever the endpoint belongs to
  /// What all launchers of the job know and nobody else does; not `has_secret`: nothing of that kind is there, and
  /// whoever knows the name of the job can join it.
  std::string secret;
  bool has_secret = false;
  /// Into which a scheduler brings the secret to a node that has none yet; removed in the end.
  std::string secret_file;
  /// On which it listens; empty: on all of this machine.
  std::vector<std::string> listen_addresses;
  Settings settings;
  NodeInfo own;
};

/// The part of a launcher that talks to those on the other nodes: finds the host of the rendezvous or is it, stays
/// connected, and takes part in electing another when it is gone. `fd` is readable when `advance` has something to do,
/// be it only that time has passed. It waits for nothing but the names of the endpoint, at most five seconds for each.
class Node {
 public:
  using Say = Server::Say;
  /// Throws LaunchError naming the owner of a port that was asked for and taken.
  Node(const NodeSetup& setup, Say say);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  int fd() const { return epoll_.get(); }
  void advance();

  /// The next round is to start with these nodes.
  std::optional<Start> take_start() { return std::exchange(start_, std::nullopt); }
  /// The workers of the present round are to be stopped.
  const std::optional<Stop>& stop() const { return stop_; }
  /// The job is over, and this is how.
  const std::optional<Finish>& finish() const { return finish_; }
  const NodeInfo& own() const { return setup_.own; }

  void report(const Ended& ended);
  /// Rank 0, on this node, ended well.
  void first_ended(double seconds_for_others);
  /// This node goes, and says so.
  void leave(int signal);
  /// Waits until the others have got the last messages, at most so long.
  void linger(std::chrono::milliseconds limit);

 private:
  enum class Goal { endpoint, host, next_host };

  void open_listener(Time now);
  bool listen(int port);
  void handle(int fd, Time now);
  void take(const Message& message, Time now);
  void take_welcome(const Welcome& welcome, Time now);
  void take_roster(const Roster& roster);
  void know_host(const Roster& roster, const std::string& id);
  void begin_probing(const Prepare& prepare, Time now);
  void end_probing();
  void reserve_port(Prepared& prepared);
  void keep_time(Time now);
  void arm_timer(Time now);
  void fail(const std::string& why) { finish_ = Finish{run::kRendezvous, why, {}, {}, {}}; }

  // node_search.cpp
  void connect_to_self(Time now);
  void search(Time now);
  void begin_dialing(Time now);
  std::vector<Target> endpoint_targets(Time now);
  void take_connect_attempt(Time now);
  void say_hello(std::unique_ptr<Connection> connection, Time now);
  enum class Loss { closed, silent };
  void lose_host(Loss loss, Time now);
  void elect(Time now);
  void take_over(Time now);
  void go_home(Time now);
  bool waits_for_secret(Time now);
  bool is_endpoint_here();
  std::string where() const;
  std::string why_not_found() const;

  NodeSetup setup_;
  Key job_key_;
  Say say_;
  Descriptor epoll_, timer_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Connection> upstream_;
  std::unique_ptr<ConnectAttempt> connect_attempt_, probe_, home_;
  LivenessProbes probes_;
  bool is_member_ = false;  // the host has welcomed us, on this connection
  bool was_member_ = false;
  Goal goal_ = Goal::endpoint;
  NodeInfo goal_node_;
  NodeInfo host_;                // as far as it is known
  std::optional<Time> lost_at_;  // when the host was lost; nothing while there is one
  Time secret_until_, join_until_, next_try_, elect_until_, heard_, last_beat_, home_at_;
  std::chrono::milliseconds pause_{50};
  int returns_ = 0;
  bool has_told_ = false, is_endpoint_taken_ = false;
  std::string problem_;  // why the host was not found
  std::vector<std::string> endpoint_addresses_;
  std::optional<Time> resolve_at_;
  Timing timing_;  // the host's
  std::optional<Roster> roster_;
  Gone gone_;
  std::optional<Start> start_;
  std::optional<Stop> stop_;
  std::optional<Finish> finish_;
  std::optional<Ended> ended_;
  std::optional<Prepare> prepare_;
  std::optional<PortReservation> port_;
  bool is_spare_ = false, is_running_ = false, leaves_ = false;
};

}  // namespace fabric::rendezvous
