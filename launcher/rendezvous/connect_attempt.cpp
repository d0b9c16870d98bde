#include "launcher/rendezvous/connect_attempt.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fabric::rendezvous {

std::vector<Target> targets_of(const NodeInfo& node) {
  std::vector<Target> targets;
  for (const auto& address : node.addresses) targets.push_back({address, node.port});
  return targets;
}

ConnectAttempt::ConnectAttempt(int epoll, const std::vector<Target>& targets, const Key& job_key, Time deadline)
    : deadline_(deadline) {
  for (const auto& target : targets) {
    auto socket = connect_to(target.address, target.port);
    if (!socket) {
      bool refused = errno == ECONNREFUSED;
      fail({target, std::strerror(errno), refused});
      continue;
    }
    tries_.push_back({target, std::make_unique<Connection>(epoll, std::move(socket), target.address,
                                                           Handshake::Role::client, job_key)});
    tries_.back().connection->send(Who{});
  }
}

bool ConnectAttempt::handle(int fd) {
  for (std::size_t i = 0; i < tries_.size(); ++i)
    if (tries_[i].connection->fd() == fd) {
      tries_[i].connection->pump();
      settle(i);
      return true;
    }
  return false;
}

// Words of ours alone: what a stranger says is not repeated.
std::optional<ConnectAttempt::Failure> ConnectAttempt::failure_of(const Try& one) const {
  Failure failure{.target = one.target};
  switch (one.connection->handshake()) {
    case Handshake::State::stranger:
      failure.why = "what listens there is no rendezvous";
      break;
    case Handshake::State::other_version:
      failure.why = "a launcher of another version is there; all nodes need the same TorchFabric";
      break;
    case Handshake::State::refused:
      failure.why = "another job's rendezvous is there, or its --rdzv-id or secret (FABRIC_RDZV_TOKEN) is another";
      break;
    default:
      return std::nullopt;
  }
  failure.stranger = true;
  return failure;
}

void ConnectAttempt::settle(std::size_t index) {
  auto& one = tries_[index];
  auto& connection = *one.connection;
  try {
    auto answer = connection.next();
    auto failure = failure_of(one);
    if (failure) {
      fail(*failure);
    } else if (answer) {
      if (auto* here = std::get_if<Here>(&*answer))
        reached_.push_back({one.target, *here, std::move(one.connection)});
      else
        fail({.target = one.target, .why = "it gives a wrong answer", .stranger = true});
    } else if (connection.is_closed()) {
      int error = connection.error();
      fail({one.target, error ? std::strerror(error) : "it hangs up", error == ECONNREFUSED,
            error == 0 || error == ECONNRESET || error == EPIPE, error == 0});
    } else {
      return;
    }
  } catch (const FrameError& error) {
    fail({.target = one.target, .why = error.what(), .stranger = true});
  }
  tries_.erase(tries_.begin() + static_cast<std::ptrdiff_t>(index));
}

void ConnectAttempt::tick(Time now) {
  if (now < deadline_) return;
  for (const auto& one : tries_) fail({.target = one.target, .why = "no answer in time"});
  tries_.clear();
}

std::optional<ConnectAttempt::Reached> ConnectAttempt::take_reached() {
  if (reached_.empty()) return std::nullopt;
  auto first = std::move(reached_.front());
  reached_.erase(reached_.begin());
  return first;
}

bool ConnectAttempt::any_refused() const {
  return std::any_of(failures_.begin(), failures_.end(), [](const Failure& failure) { return failure.refused; });
}

bool ConnectAttempt::any_hung_up() const {
  return std::any_of(failures_.begin(), failures_.end(), [](const Failure& failure) { return failure.hung_up; });
}

std::string ConnectAttempt::failures_in_words() const {
  std::string text;
  for (const auto& failure : failures_)
    text += (text.empty() ? "" : ", ") + with_port(failure.target.address, failure.target.port) + ": " + failure.why;
  return text;
}

}  // namespace fabric::rendezvous
