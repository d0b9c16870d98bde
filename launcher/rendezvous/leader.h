#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launcher/rendezvous/election.h"
#include "launcher/rendezvous/restart_policy.h"
#include "launcher/rendezvous/settings.h"

namespace fabric::rendezvous {

/// What decides for all nodes of a job: who takes part, when the workers start, why they stop, and how it ends. Knows
/// neither sockets nor clocks: events and times go in, messages come out.
///
/// A round: gathering (enough nodes) → preparing (all reach the node of rank 0) → running → stopping (all workers are
/// gone) → the next round, or the end.
class Leader {
 public:
  Leader(const Settings& settings, const NodeInfo& own, Time now);
  /// Takes over after the nodes of `gone`; the nodes of the roster are expected to come back.
  Leader(const Settings& settings, const NodeInfo& own, const Roster& roster, const Gone& gone, Time now);

  /// A node came, or came back. Returns why it is refused, or nothing.
  std::optional<Refused> join(const Hello& hello, Time now);
  void receive(const std::string& id, const Message& message, Time now);
  /// Its connection is closed: whether its launcher ended is to be found out for `take_suspects`, and told to `settle`.
  void cut(const std::string& id, Time now);
  std::vector<NodeInfo> take_suspects();
  enum class Fate {
    ended,    // nobody listens there any more
    unknown,  // no answer
    lives,    // it may come back
    moved     // it follows another host
  };
  void settle(const std::string& id, Fate fate, Time now);
  /// Whether the others may go on when this launcher leaves; else the job ends with it.
  bool can_do_without_me() const;
  void end_with_me(int signal);
  /// To be called at `deadline` and after other events.
  void tick(Time now);
  Time deadline() const;

  void tell_all(const Message& message);

  struct Outgoing {
    std::string to;
    Message message;
  };
  std::vector<Outgoing> take_outgoing();
  /// What the host's own launcher should print.
  std::vector<std::string> take_notes();
  bool is_over() const { return phase_ == Phase::over; }
  bool has_started() const { return !base_.nodes.empty(); }

 private:
  enum class Phase { gathering, preparing, running, stopping, over };
  struct Member {
    NodeInfo info;
    Time heard;
    std::optional<Time> cut_at;
    long arrival = 0;
    bool plays = false;  // part of the round that is being prepared or runs
    std::optional<Prepared> prepared;
    std::optional<Ended> ended;
  };
  struct Cause {
    enum Kind { none, failure, loss, joiner } kind = none;
    Ended end;
    std::string node_id, text;
    int code = 0;
  };

  void send(const std::string& to, const Message& message) { outgoing_.push_back({to, message}); }
  void note(const std::string& text) { notes_.push_back(text); }
  void send_beats(Time now);
  void drop_silent(Time now);
  void remove(const std::string& id, bool certain, const std::string& why, int code, Time now);
  void newcomer(Member& member, Time now);
  void tell_spares();
  int present() const;

  // leader_rounds.cpp
  void gather(Time now);
  void gather_first(int here, Time now);
  void prepare(Time now);
  void check_prepared(Time now);
  const NodeInfo& first_player() const;
  std::optional<std::string> common_address() const;
  std::string unreachable() const;
  void start(const std::string& address, int port);
  void take_end(Member& member, const Ended& ended, Time now);
  void stop(Cause cause, Time now);
  void check_stopped(Time now);
  void check_all_ended(Time now);
  void decide(Time now);
  void fail_for_want_of_nodes();
  void finish(Finish end);
  bool all_succeeded() const;
  std::string missing() const;
  std::string nodes_wanted() const;
  std::string names() const;

  Settings settings_;
  std::string own_id_;
  run::RestartPolicy policy_;
  Phase phase_ = Phase::gathering;
  std::map<std::string, Member> members_;
  long arrivals_ = 0;
  Roster base_;  // of the last round that started
  Gone gone_;    // since then
  Gone dismissed_;
  int round_ = 0;
  Cause cause_;
  std::string lost_text_;  // the last nodes that were lost since the round started
  int lost_code_ = 0;
  Time last_beat_, join_until_, phase_until_;
  std::optional<Time> last_call_until_, rejoin_at_, expect_until_, require_all_at_;
  Time expect_spares_until_;  // of a new host
  std::vector<Outgoing> outgoing_;
  std::vector<std::string> notes_, suspects_;
};

}  // namespace fabric::rendezvous
