#include "launcher/rendezvous/server.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace fabric::rendezvous {
namespace {

constexpr std::chrono::seconds kStrangerTime{5};
constexpr std::chrono::milliseconds kRest{200};
constexpr int kMostComplaints = 5;

}  // namespace

Server::Server(int epoll, const Key& job_key, std::string own_id, Say say)
    : epoll_(epoll), job_key_(job_key), own_id_(std::move(own_id)), say_(std::move(say)) {}

void Server::listen(Descriptor listener) { listeners_.emplace_back(epoll_, std::move(listener)); }

void Server::adopt(Descriptor end) {
  int fd = end.get();
  Guest guest{
      std::make_unique<Connection>(epoll_, std::move(end), "this node", Handshake::Role::server, job_key_),
      Clock::now(),
  };
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
    if (listener.fd() == fd) return accept(fd, now), true;
  auto found = guests_.find(fd);
  if (found == guests_.end()) return false;
  take(found->second, now);
  return true;
}

void Server::accept(int listener, Time now) {
  for (;;) {
    int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    bool lacks_room = fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM);
    if (lacks_room && drop_oldest_stranger()) continue;
    if (lacks_room) return rest(now);
    if (fd < 0) return;
    Descriptor socket;
    try {
      socket = above_stdio(fd, "the rendezvous");
    } catch (const LaunchError&) {
      continue;
    }
    fd = socket.get();
    auto peer = peer_name(fd);
    guests_[fd] = {std::make_unique<Connection>(epoll_, std::move(socket), peer, Handshake::Role::server, job_key_),
                   now};
    keep_few_strangers();
  }
}

// The oldest stranger goes when there are too many, so that strangers never keep a node out.
void Server::keep_few_strangers() {
  auto strangers =
      std::count_if(guests_.begin(), guests_.end(), [](const auto& entry) { return entry.second.is_stranger(); });
  if (static_cast<std::size_t>(strangers) > kMostStrangers) drop_oldest_stranger();
}

bool Server::drop_oldest_stranger() {
  auto oldest = guests_.end();
  for (auto it = guests_.begin(); it != guests_.end(); ++it)
    if (it->second.is_stranger() && (oldest == guests_.end() || it->second.since < oldest->second.since)) oldest = it;
  if (oldest == guests_.end()) return false;
  guests_.erase(oldest);
  return true;
}

// A connection that cannot be taken keeps its listener readable: looking at it again at once would take a processor.
void Server::rest(Time now) {
  for (auto& listener : listeners_) listener.pause();
  rests_until_ = now + kRest;
}

void Server::take(Guest& guest, Time now) {
  guest.connection->pump();
  auto handshake = guest.connection->handshake();
  if (guest.leaves || handshake == Handshake::State::running) return;
  if (handshake == Handshake::State::stranger) return drop(guest, "it is no launcher");
  if (handshake == Handshake::State::other_version) return drop(guest, "it is a launcher of another version");
  if (handshake == Handshake::State::refused) return drop(guest, "its secret or its job is another");
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
  if (std::holds_alternative<Who>(message)) {
    auto host_id = leader_ ? own_id_ : other_host_ ? other_host_->id : "";
    guest.connection->send(Here{own_id_, host_id});
  } else if (const auto* hello = std::get_if<Hello>(&message)) {
    greet(guest, *hello, now);
  } else if (const auto* moved = std::get_if<Moved>(&message)) {
    moved_ = moved->host;
  } else if (guest.id.empty()) {
    drop(guest, "it sends what only a node may send");
  } else if (leader_) {
    leader_->receive(guest.id, message, now);
  }
}

void Server::greet(Guest& guest, const Hello& hello, Time now) {
  if (!leader_) {
    if (other_host_)
      guest.connection->send(Moved{*other_host_});
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
  if (rests_until_ && now >= *rests_until_) {
    rests_until_.reset();
    for (auto& listener : listeners_) listener.resume();
  }
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
    bool is_late = guest.is_stranger() && now >= guest.since + kStrangerTime;
    if (is_late && !guest.leaves) drop(guest, "it said nothing for too long");
    bool gone = guest.connection->is_closed() || is_late || (guest.leaves && guest.connection->is_flushed());
    if (gone && leader_ && !guest.id.empty()) leader_->cut(guest.id, now);
    it = gone ? guests_.erase(it) : std::next(it);
  }
}

Time Server::deadline() const {
  Time first = leader_ ? leader_->deadline() : Time::max();
  for (const auto& [fd, guest] : guests_)
    if (guest.is_stranger()) first = std::min(first, guest.since + Time::duration(kStrangerTime));
  if (rests_until_) first = std::min(first, *rests_until_);
  return first;
}

bool Server::is_deserted() const {
  return std::all_of(guests_.begin(), guests_.end(), [](const auto& entry) {
    return entry.second.is_local || entry.second.is_stranger() || entry.second.connection->is_closed();
  });
}

}  // namespace fabric::rendezvous
