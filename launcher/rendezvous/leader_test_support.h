#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "launcher/rendezvous/leader.h"
#include "tests/support/catch.h"

// Nodes of a rendezvous that are played, and a clock that is turned by hand.
namespace fabric::rendezvous {

inline Settings some(int min, int max, int max_restarts = 0) {
  Settings settings;
  settings.min_nodes = min;
  settings.max_nodes = max;
  settings.max_restarts = max_restarts;
  settings.grace = 2;
  settings.timing.join = 60;
  settings.timing.last_call = 5;
  settings.timing.heartbeat = 1;
  settings.run_id = "job";
  return settings;
}

inline NodeInfo named(const std::string& name, int local_size = 1, int wanted = -1) {
  NodeInfo node;
  node.id = name;
  node.host = name;
  node.local_size = local_size;
  node.wanted_rank = wanted;
  node.addresses = {"10.0.0." + name.substr(1)};
  node.port = 1000;
  return node;
}

/// Nodes a1, a2, …: they send beats, reach everything, and keep what they were told. a1 hosts.
class Play {
 public:
  explicit Play(const Settings& settings) : settings_(settings), leader_(settings, named("a1"), at(0)) {}
  Play(const Settings& settings, const std::string& own, const Roster& roster, const Gone& gone)
      : settings_(settings), leader_(settings, named(own), roster, gone, at(0)) {}

  std::string join(const std::string& name, int wanted = -1, bool resumes = false, int round = -1) {
    Hello hello{named(name, 1, wanted), settings_.min_nodes, settings_.max_nodes};
    hello.resumes = resumes;
    hello.round = round;
    auto refused = leader_.join(hello, at(now_));
    if (!refused) alive_.insert(name);
    if (refused) return refused->why;
    go(0);
    return "";
  }
  void say(const std::string& name, const Message& message) {
    leader_.receive(name, message, at(now_));
    go(0);
  }
  void end(const std::string& name, int code, bool stopped = false) {
    Ended ended{.round = round(name), .succeeded = code == 0 && !stopped, .failed = code != 0, .code = code};
    ended.cause = name + " failed";
    ended.step = step;
    ended.forbids_retry = code == 93;
    stops.erase(name);
    say(name, ended);
  }
  /// All nodes that were told to stop say that they have.
  void all_stop() {
    auto told = stops;
    for (const auto& [name, why] : told)
      if (alive_.contains(name)) end(name, 0, true);
  }
  void cut(const std::string& name) {
    break_connection(name);
    leader_.settle(name, Leader::Fate::ended, at(now_));
  }
  void break_connection(const std::string& name) {
    alive_.erase(name);
    leader_.cut(name, at(now_));
  }
  void silence(const std::string& name) { alive_.erase(name); }
  /// Time passes, in which those that live send beats.
  void go(double seconds) {
    double until = now_ + seconds;
    do {
      now_ = std::min(until, now_ + 0.1);
      for (const auto& name : std::set<std::string>(alive_)) leader_.receive(name, Beat{}, at(now_));
      leader_.tick(at(now_));
      deliver();
    } while (now_ < until);
  }

  int round(const std::string& name) const { return starts.contains(name) ? starts.at(name).roster.round : -1; }
  std::string order() const {
    std::string text;
    for (const auto& node : starts.begin()->second.roster.nodes) text += node.id + " ";
    return text;
  }
  std::size_t players() const { return starts.empty() ? 0 : starts.begin()->second.roster.nodes.size(); }

  std::map<std::string, Start> starts;  // the last of each node
  std::map<std::string, std::string> stops;
  std::map<std::string, Finish> ends;
  std::set<std::string> spares;
  std::map<std::string, std::vector<NodeInfo>> known_spares;    // what each node of the round knows
  std::map<std::string, std::vector<std::string>> unreachable;  // what a node cannot reach
  std::string port_problem;
  long long step = -1;
  Leader& leader() { return leader_; }

 private:
  static Time at(double seconds) { return Time(in_clock(1000 + seconds)); }
  void deliver() {
    for (auto all = leader_.take_outgoing(); !all.empty(); all = leader_.take_outgoing()) {
      for (const auto& [to, message] : all) {
        if (auto* prepare = std::get_if<Prepare>(&message); prepare && alive_.contains(to)) {
          Prepared prepared{.round = prepare->round};
          for (const auto& address : prepare->first.addresses)
            if (std::count(unreachable[to].begin(), unreachable[to].end(), address))
              prepared.failed.push_back(address + ": no route");
            else
              prepared.reached.push_back(address);
          if (to == prepare->first.id) prepared.port = 4321, prepared.problem = port_problem;
          leader_.receive(to, prepared, at(now_));
        }
        if (auto* start = std::get_if<Start>(&message)) starts[to] = *start, stops.erase(to), spares.erase(to);
        if (auto* stop = std::get_if<Stop>(&message)) stops[to] = stop->reason;
        if (auto* finish = std::get_if<Finish>(&message)) ends[to] = *finish;
        if (std::holds_alternative<Spare>(message)) spares.insert(to);
        if (auto* told = std::get_if<Spares>(&message)) known_spares[to] = told->spares;
      }
      leader_.tick(at(now_));
    }
  }

  Settings settings_;
  double now_ = 0;
  std::set<std::string> alive_;
  Leader leader_;
};

/// A job in its first round.
inline Play running(const Settings& settings, int nodes) {
  Play play(settings);
  for (int i = 1; i <= nodes; ++i) play.join('a' + std::to_string(i));
  play.go(settings.timing.last_call + 1);
  REQUIRE(play.players() == static_cast<std::size_t>(nodes));
  REQUIRE(play.round("a1") == 0);
  return play;
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace fabric::rendezvous
