#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launcher/rendezvous/connect_attempt.h"
#include "launcher/rendezvous/leader.h"

namespace fabric::rendezvous {

/// Asks nodes whose connections closed whether they live: a launcher that ended is another matter than a broken
/// connection, and than one that went over to another host.
class LivenessProbes {
 public:
  LivenessProbes(int epoll, const Key& job_key, std::string own_id)
      : epoll_(epoll), job_key_(job_key), own_id_(std::move(own_id)) {}
  void set_key(const Key& job_key) { job_key_ = job_key; }
  void begin(const NodeInfo& node, std::chrono::nanoseconds limit, Time now);
  /// True when the descriptor is one of its own.
  bool handle(int fd);
  /// What came out, by id of the node.
  std::vector<std::pair<std::string, Leader::Fate>> tick(Time now);
  Time deadline() const;

 private:
  struct Check {
    NodeInfo node;
    std::unique_ptr<ConnectAttempt> attempt;
    std::chrono::nanoseconds limit;
    int tries = 0;
    Time again;
  };
  Leader::Fate fate_of(Check& check);
  int epoll_;
  Key job_key_;
  std::string own_id_;
  std::map<std::string, Check> probes_;
};

}  // namespace fabric::rendezvous
