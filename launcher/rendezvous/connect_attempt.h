#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/rendezvous/connection.h"
#include "launcher/rendezvous/settings.h"

namespace fabric::rendezvous {

struct Target {
  std::string address;
  int port = 0;
};
std::vector<Target> targets_of(const NodeInfo& node);

/// Connects to several addresses at once and asks each who is there.
class ConnectAttempt {
 public:
  ConnectAttempt(int epoll, const std::vector<Target>& targets, const Key& job_key, Time deadline);
  /// True when the descriptor is one of its own.
  bool handle(int fd);
  void tick(Time now);
  Time deadline() const { return deadline_; }
  /// Every target has answered or failed.
  bool is_over() const { return tries_.empty(); }

  struct Reached {
    Target target;
    Here here;
    std::unique_ptr<Connection> connection;
  };
  /// The next that answered as one of our job.
  std::optional<Reached> take_reached();
  struct Failure {
    Target target;
    std::string why;
    bool refused = false;  // the machine is there, and nobody listens
    bool hung_up = false;
    bool stranger = false;  // somebody listens who is not of this job
  };
  const std::vector<Failure>& failures() const { return failures_; }
  bool any_refused() const;
  /// Somebody was there and went, as launchers do that end just now.
  bool any_hung_up() const;
  /// "10.0.0.1:29400: connection refused, …"
  std::string failures_in_words() const;

 private:
  struct Try {
    Target target;
    std::unique_ptr<Connection> connection;
  };
  void settle(std::size_t index);
  std::optional<Failure> failure_of(const Try& one) const;
  void fail(Failure failure) { failures_.push_back(std::move(failure)); }

  Time deadline_;
  std::vector<Try> tries_;
  std::vector<Reached> reached_;
  std::vector<Failure> failures_;
};

}  // namespace fabric::rendezvous
