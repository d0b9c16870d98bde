#include "launcher/rendezvous/server.h"

#include <sys/socket.h>

#include <algorithm>

namespace fabric::rendezvous {
namespace {

constexpr std::size_t kMostStrangers = 128;
constexpr std::chrono::seconds kStrangerTime{5};
constexpr int kMostComplaints = 5;

}  // namespace

bool same_token(const std::string& given, const std::string& expected) {
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (std::size_t i = 0; i < expected.size(); ++i)
    difference |= static_cast<unsigned char>(expected[i] ^ (i < given.size() ? given[i] : 0));
  return difference == 0;
}

Server::Server(int epoll, std::string token, std::string own_id, Say say)
    : epoll_(epoll), token_(std::move(token)), own_id_(std::move(own_id)), say_(std::move(say)) {}

void Server::listen(Descriptor listener) {
  watch(epoll_, listener.get());
  listeners_.push_back(std::move(listener));
}

void Server::adopt(Descriptor end) {
  int fd = end.get();
  Guest guest{std::make_unique<Connection>(epoll_, std::move(end), "this node"), Clock::now()};
  guest.is_local = true;
  guests_.emplace(fd, std::move(guest));
}

void Server::resign(bool keeps_listening) {
  leader_.reset();
  guests_.clear();
  if (!keeps_listening) listeners_.clear();
}

bool Server::handle(int fd, Time now) {
  for (const auto& listener : listeners_)
    if (listener.get() == fd) return accept(fd, now), true;
  auto found = guests_.find(fd);
  if (found == guests_.end()) return false;
  take(found->second, now);
  return true;
}

void Server::accept(int listener, Time now) {
  for (;;) {
    int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    Descriptor socket;
    try {
      socket = above_stdio(fd, "the rendezvous");
    } catch (const LaunchError&) {
      continue;
    }
    fd = socket.get();
    auto peer = peer_name(fd);
    guests_[fd] = {std::make_unique<Connection>(epoll_, std::move(socket), peer), now};
    // The oldest stranger goes when there are too many, so that strangers never keep a node out.
    auto oldest = guests_.end();
    std::size_t strangers = 0;
    for (auto it = guests_.begin(); it != guests_.end(); ++it) {
      if (it->second.is_known || it->second.is_local) continue;
      ++strangers;
      if (oldest == guests_.end() || it->second.since < oldest->second.since) oldest = it;
    }
    if (strangers > kMostStrangers) guests_.erase(oldest);
  }
}

void Server::take(Guest& guest, Time now) {
  guest.connection->pump();
  try {
    while (!guest.leaves) {
      auto message = guest.connection->next();
      if (!message) break;
      answer(guest, *message, now);
    }
  } catch (const FrameError& error) {
    drop(guest, error.what());
  }
}

void Server::answer(Guest& guest, const Message& message, Time now) {
  if (const auto* who = std::get_if<Who>(&message)) {
    if (!check_token(guest, who->token)) return;
    auto host_id = leader_ ? own_id_ : other_host_ ? other_host_->id : "";
    guest.connection->send(Here{own_id_, host_id});
  } else if (const auto* hello = std::get_if<Hello>(&message)) {
    if (check_token(guest, hello->token)) greet(guest, *hello, now);
  } else if (const auto* moved = std::get_if<Moved>(&message)) {
    if (check_token(guest, moved->token)) moved_ = moved->host;
  } else if (guest.id.empty()) {
    drop(guest, "it sends what only a node may send");
  } else if (leader_) {
    leader_->receive(guest.id, message, now);
  }
}

bool Server::check_token(Guest& guest, const std::string& token) {
  if (same_token(token, token_)) {
    guest.is_known = true;
    guest.connection->set_limit(kMemberLimit);
    return true;
  }
  guest.connection->send(
      Refused{"another job's rendezvous is there, or its --rdzv-id or FABRIC_RDZV_TOKEN differ from those here", true});
  drop(guest, "its token is not the one of this job");
  return false;
}

void Server::greet(Guest& guest, const Hello& hello, Time now) {
  if (!leader_) {
    if (other_host_)
      guest.connection->send(Moved{token_, *other_host_});
    else
      guest.connection->send(Refused{"this node does not host the rendezvous", false});
    return;
  }
  guest.id = hello.node.id;
  for (auto& [fd, other] : guests_)
    if (&other != &guest && other.id == guest.id) other.id.clear(), other.leaves = true;
  if (auto refused = leader_->join(hello, now)) {
    guest.id.clear();
    guest.connection->send(*refused);
    say_("a node was refused: " + describe(hello.node) + " from " + guest.connection->peer() + ": " + refused->why);
  }
}

void Server::drop(Guest& guest, const std::string& why) {
  guest.leaves = true;
  guest.connection->close_sending();
  if (++complaints_ <= kMostComplaints)
    say_("dropped a connection from " + guest.connection->peer() + ": " + why +
         (complaints_ == kMostComplaints ? " (more of the kind are not reported)" : ""));
}

void Server::tick(Time now) {
  sweep(now);
  if (!leader_) return;
  leader_->tick(now);
  for (const auto& text : leader_->take_notes()) say_(text);
  deliver();
}

void Server::deliver() {
  auto all = leader_->take_outgoing();
  std::map<std::string, Connection*> connections;
  if (!all.empty())
    for (auto& [fd, guest] : guests_)
      if (!guest.id.empty()) connections[guest.id] = guest.connection.get();
  for (auto& outgoing : all) {
    auto found = connections.find(outgoing.to);
    if (found == connections.end()) continue;
    found->second->send(outgoing.message);
    const auto* refused = std::get_if<Refused>(&outgoing.message);
    if (refused && refused->final) found->second->close_sending();
  }
  if (leader_->is_over())
    for (auto& [fd, guest] : guests_) guest.connection->close_sending();
}

void Server::sweep(Time now) {
  for (auto it = guests_.begin(); it != guests_.end();) {
    auto& guest = it->second;
    bool is_late = !guest.is_known && !guest.is_local && now >= guest.since + kStrangerTime;
    if (is_late && !guest.leaves) drop(guest, "it said nothing for too long");
    bool gone = guest.connection->is_closed() || is_late || (guest.leaves && guest.connection->is_flushed());
    if (gone && leader_ && !guest.id.empty()) leader_->cut(guest.id, now);
    it = gone ? guests_.erase(it) : std::next(it);
  }
}

Time Server::deadline() const {
  Time first = leader_ ? leader_->deadline() : Time::max();
  for (const auto& [fd, guest] : guests_)
    if (!guest.is_known && !guest.is_local) first = std::min(first, guest.since + Time::duration(kStrangerTime));
  return first;
}

bool Server::is_deserted() const {
  return std::all_of(guests_.begin(), guests_.end(), [](const auto& entry) {
    return entry.second.is_local || !entry.second.is_known || entry.second.connection->is_closed();
  });
}

}  // namespace fabric::rendezvous
