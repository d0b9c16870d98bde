#pragma once

#include <string>
#include <variant>
#include <vector>

#include <fabric/base/tree.h>

#include "launcher/rendezvous/frame.h"

// What launchers of one job say to each other. Each structure lists its fields once, for writing and for reading.
namespace fabric::rendezvous {

/// One launcher of the job, which runs the workers of one node.
struct NodeInfo {
  std::string id;  // a random one for each process
  std::string host;
  int pid = 0;
  int local_size = 1;
  int wanted_rank = -1;                // --node-rank; -1: any
  std::vector<std::string> addresses;  // numeric, the preferred first
  int port = 0;                        // on which it listens
  template <class Archive>
  void fields(Archive& archive) {
    archive("id", id), archive("host", host), archive("pid", pid), archive("local_size", local_size);
    archive("wanted_rank", wanted_rank), archive("addresses", addresses), archive("port", port);
  }
};

/// The state that every node keeps, so that any of them can take over from a host that is gone.
struct Roster {
  int round = 0;  // counts all starts of the workers
  std::string run_id, host_id;
  std::vector<NodeInfo> nodes;   // of the round, by group rank
  std::vector<NodeInfo> spares;  // connected, without workers
  int charged = 0, stale = 0;    // restarts that count against the budget, and those without progress
  long long best_step = -1;
  template <class Archive>
  void fields(Archive& archive) {
    archive("round", round), archive("run_id", run_id), archive("host_id", host_id);
    archive("nodes", nodes), archive("spares", spares), archive("charged", charged), archive("stale", stale);
    archive("best_step", best_step);
  }
};

// --- to whoever listens
/// Asks who is there.
struct Who {
  static constexpr const char* kName = "who";
  template <class Archive>
  void fields(Archive&) {}
};
/// The answer: a member of the job.
struct Here {
  static constexpr const char* kName = "here";
  std::string id, host_id;  // its own, and of the host that it knows; empty: none
  template <class Archive>
  void fields(Archive& archive) {
    archive("id", id), archive("host_id", host_id);
  }
};
/// The other answer. `final`: coming again is of no use.
struct Refused {
  static constexpr const char* kName = "refused";
  std::string why;
  bool final = false;
  template <class Archive>
  void fields(Archive& archive) {
    archive("why", why), archive("final", final);
  }
};
/// Joins, or comes back after the host or the connection was lost.
struct Hello {
  static constexpr const char* kName = "hello";
  NodeInfo node;
  int min_nodes = 1, max_nodes = 1;
  int round = -1;  // the last one that it took part in
  bool resumes = false;
  template <class Archive>
  void fields(Archive& archive) {
    archive("node", node), archive("min_nodes", min_nodes), archive("max_nodes", max_nodes);
    archive("round", round), archive("resumes", resumes);
  }
};
/// From a host that took over: the job lives on there.
struct Moved {
  static constexpr const char* kName = "moved";
  NodeInfo host;
  template <class Archive>
  void fields(Archive& archive) {
    archive("host", host);
  }
};

// --- from a node to the host
struct Beat {
  static constexpr const char* kName = "beat";
  template <class Archive>
  void fields(Archive&) {}
};
/// Which addresses of the first node could be reached; from the first node also the port of the round.
struct Prepared {
  static constexpr const char* kName = "prepared";
  int round = 0;
  std::vector<std::string> reached, failed;  // "10.0.0.1: timed out"
  int port = 0;
  std::string problem;
  template <class Archive>
  void fields(Archive& archive) {
    archive("round", round), archive("reached", reached), archive("failed", failed), archive("port", port);
    archive("problem", problem);
  }
};
/// The workers of this node are gone.
struct Ended {
  static constexpr const char* kName = "ended";
  int round = 0;
  bool succeeded = false;  // all of them ended with 0
  bool failed = false;     // the cause is here; neither: they were stopped
  bool can_retry = true, forbids_retry = false;
  int code = 0;
  long long step = -1;
  std::string cause, report;  // one line; and all there is to say
  template <class Archive>
  void fields(Archive& archive) {
    archive("round", round), archive("succeeded", succeeded), archive("failed", failed);
    archive("can_retry", can_retry), archive("forbids_retry", forbids_retry), archive("code", code);
    archive("step", step), archive("cause", cause), archive("report", report);
  }
};
/// Rank 0, which is on this node, ended well; the others have so long (--require-all).
struct FirstEnded {
  static constexpr const char* kName = "first_ended";
  int round = 0;
  double seconds = 0;
  template <class Archive>
  void fields(Archive& archive) {
    archive("round", round), archive("seconds", seconds);
  }
};
/// This node has not heard of the host for too long and looks for another. What it said of its workers' end counts no
/// more, unless it comes back.
struct Abandon {
  static constexpr const char* kName = "abandon";
  template <class Archive>
  void fields(Archive&) {}
};
/// This node goes: its launcher was told to.
struct Leave {
  static constexpr const char* kName = "leave";
  int signal = 0;
  template <class Archive>
  void fields(Archive& archive) {
    archive("signal", signal);
  }
};

// --- from the host to nodes
struct Welcome {
  static constexpr const char* kName = "welcome";
  std::string host_id;
  double heartbeat = 5;
  int misses = 3;
  int here = 0;          // nodes that have come so far
  bool started = false;  // a round runs: this node waits for a place
  Roster roster;         // of the last round; without nodes: there was none
  template <class Archive>
  void fields(Archive& archive) {
    archive("host_id", host_id), archive("heartbeat", heartbeat), archive("misses", misses), archive("here", here);
    archive("started", started), archive("roster", roster);
  }
};
/// Try to reach the node that rank 0 will be on.
struct Prepare {
  static constexpr const char* kName = "prepare";
  int round = 0;
  NodeInfo first;
  template <class Archive>
  void fields(Archive& archive) {
    archive("round", round), archive("first", first);
  }
};
struct Start {
  static constexpr const char* kName = "start";
  Roster roster;
  int max_restarts = 0;
  std::string master_addr;
  int master_port = 0;
  template <class Archive>
  void fields(Archive& archive) {
    archive("roster", roster), archive("max_restarts", max_restarts), archive("master_addr", master_addr);
    archive("master_port", master_port);
  }
};
/// The round goes on without this node, which is a spare.
struct Spare {
  static constexpr const char* kName = "spare";
  Roster roster;
  template <class Archive>
  void fields(Archive& archive) {
    archive("roster", roster);
  }
};
/// To those of the round: who waits for a place, which the next host has to know.
struct Spares {
  static constexpr const char* kName = "spares";
  std::vector<NodeInfo> spares;
  template <class Archive>
  void fields(Archive& archive) {
    archive("spares", spares);
  }
};
struct Stop {
  static constexpr const char* kName = "stop";
  int round = 0;
  int code = 0;
  std::string reason;
  template <class Archive>
  void fields(Archive& archive) {
    archive("round", round), archive("code", code), archive("reason", reason);
  }
};
struct Finish {
  static constexpr const char* kName = "finish";
  int code = 0;
  std::string reason;  // why the job is not started again
  std::string cause, report, reporter_id;
  template <class Archive>
  void fields(Archive& archive) {
    archive("code", code), archive("reason", reason), archive("cause", cause), archive("report", report);
    archive("reporter_id", reporter_id);
  }
};

using Message = std::variant<Who, Here, Refused, Hello, Moved, Beat, Prepared, Ended, FirstEnded, Abandon, Leave,
                             Welcome, Prepare, Start, Spare, Spares, Stop, Finish>;

Tree to_tree(const Message& message);
/// Throws FrameError for an unknown message, a missing field, one of another type, and values that cannot be.
Message to_message(const Tree& tree);

/// "gpu-3 (launcher 77)" for people.
std::string describe(const NodeInfo& node);

}  // namespace fabric::rendezvous
