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

ConnectAttempt::ConnectAttempt(int epoll, const std::vector<Target>& targets, const std::string& token, Time deadline)
    : deadline_(deadline) {
  for (const auto& target : targets) {
    auto socket = connect_to(target.address, target.port);
    if (!socket) {
      bool refused = errno == ECONNREFUSED;
      fail({target, std::strerror(errno), refused});
      continue;
    }
    tries_.push_back({target, std::make_unique<Connection>(epoll, std::move(socket), target.address)});
    tries_.back().connection->send(Who{token});
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

void ConnectAttempt::settle(std::size_t index) {
  auto& connection = *tries_[index].connection;
  auto target = tries_[index].target;
  try {
    auto answer = connection.next();
    if (answer) {
      if (auto* here = std::get_if<Here>(&*answer))
        reached_.push_back({target, *here, std::move(tries_[index].connection)});
      else if (auto* refused = std::get_if<Refused>(&*answer))
        fail({.target = target, .why = refused->why, .stranger = true});
      else
        fail({.target = target, .why = "it gives a wrong answer", .stranger = true});
    } else if (connection.is_closed()) {
      int error = connection.error();
      fail({target, error ? std::strerror(error) : "it hangs up", error == ECONNREFUSED,
            error == 0 || error == ECONNRESET || error == EPIPE, error == 0});
    } else {
      return;
    }
  } catch (const FrameError&) {
    fail({.target = target, .why = "what listens there is no rendezvous", .stranger = true});
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
