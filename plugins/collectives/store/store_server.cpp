#include "plugins/collectives/store/store_server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include <fabric/base/error.h>

#include "launcher/os/signal_mask.h"

namespace fabric::collectives {
namespace {

using wire::Request;
using wire::Status;

constexpr std::size_t kChunk = 64 << 10;

Descriptor require_descriptor(int fd, const char* what) {
  if (fd < 0)
    throw CollectiveError(std::string("the job's store cannot be served: no descriptor for ") + what + ": " +
                          std::strerror(errno));
  return Descriptor(fd);
}

bool watch(int epoll, int fd, std::uint32_t events, int how = EPOLL_CTL_ADD) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  return epoll_ctl(epoll, how, fd, &event) == 0;
}

// What `add` counts in: a text of digits, as in LibTorch's own stores.
std::int64_t count_in(const std::string& text) {
  std::int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

StoreServer::StoreServer(std::vector<Descriptor> listeners, wire::Greeting job)
    : listeners_(std::move(listeners)), members_(std::move(job)) {
  epoll_ = require_descriptor(epoll_create1(EPOLL_CLOEXEC), "its thread");
  wakeup_ = require_descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "its end");
  spare_ = require_descriptor(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
  if (!watch(epoll_.get(), wakeup_.get(), EPOLLIN))
    throw CollectiveError(std::string("the job's store cannot be served: ") + std::strerror(errno));
  for (const auto& listener : listeners_) {
    fcntl(listener.get(), F_SETFL, O_NONBLOCK);
    watch(epoll_.get(), listener.get(), EPOLLIN);
  }
  BlockSignals blocked;
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "fabric_store");
    run();
  });
}

StoreServer::~StoreServer() {
  std::uint64_t one = 1;
  [[maybe_unused]] auto woken = write(wakeup_.get(), &one, sizeof one);
  thread_.join();
}

void StoreServer::run() {
  std::vector<epoll_event> events(64);
  while (true) {
    int limit = strangers_ > 0 ? 1000 : -1;
    int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), limit);
    for (int i = 0; i < count; ++i) {
      int fd = events[i].data.fd;
      if (fd == wakeup_.get()) return;
      auto is_it = [fd](const Descriptor& listener) { return listener.get() == fd; };
      if (std::any_of(listeners_.begin(), listeners_.end(), is_it)) {
        accept_from(fd);
        continue;
      }
      auto found = clients_.find(fd);
      if (found == clients_.end()) continue;  // dropped in this turn
      if (events[i].events & EPOLLOUT) flush(*found->second);
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_from(*found->second);
    }
    drop_late_strangers();
    // Only now, so that no descriptor's number comes back within a turn.
    for (int fd : std::exchange(gone_, {})) drop(fd);
  }
}

void StoreServer::accept_from(int listener) {
  while (true) {
    int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && spare_) {
      // Somebody waits whom there is no descriptor for: taken with the spare one and sent away, or the loop would spin.
      spare_.reset();
      fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0) close(fd);
      spare_ = Descriptor(open("/dev/null", O_RDWR | O_CLOEXEC));
      continue;
    }
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE) usleep(10'000);
      return;
    }
    auto client = std::make_unique<Client>();
    client->socket = Descriptor(fd);
    client->since = Clock::now();
    if (!watch(epoll_.get(), fd, EPOLLIN)) continue;
    if (strangers_ >= kMostStrangers) {
      auto oldest = std::min_element(clients_.begin(), clients_.end(), [](const auto& a, const auto& b) {
        if (a.second->is_member != b.second->is_member) return b.second->is_member;
        return a.second->since < b.second->since;
      });
      // Its number may be the next one that the system gives out, and then is somebody else's.
      std::erase(gone_, oldest->first);
      drop(oldest->first);
    }
    ++strangers_;
    clients_[fd] = std::move(client);
  }
}

void StoreServer::drop(int fd) {
  auto found = clients_.find(fd);
  if (found == clients_.end()) return;
  forget_wish(*found->second);
  if (found->second->is_member)
    --connections_[found->second->rank];
  else
    --strangers_;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  clients_.erase(found);
}

void StoreServer::drop_late_strangers() {
  if (strangers_ == 0) return;
  auto limit = Clock::now() - kPatience;
  for (const auto& [fd, client] : clients_)
    if (!client->is_member && client->since < limit) gone_.push_back(fd);
}

void StoreServer::read_from(Client& client) {
  char bytes[kChunk];
  while (true) {
    // A stranger's bytes beyond the limit stay with the system.
    auto room = client.is_member ? kChunk : wire::kMagic.size() + wire::kGreetingLimit - client.in.size();
    if (room == 0) break;
    auto count = recv(client.socket.get(), bytes, std::min(room, sizeof bytes), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (count <= 0) return gone_.push_back(client.socket.get());
    client.in.append(bytes, static_cast<std::size_t>(count));
    if (!serve(client)) return gone_.push_back(client.socket.get());
  }
  if (!client.is_member && client.in.size() >= wire::kMagic.size() + wire::kGreetingLimit)
    gone_.push_back(client.socket.get());
}

bool StoreServer::serve(Client& client) {
  if (client.is_leaving) return false;  // it was told why, and has nothing to say
  if (!client.is_member && !greet(client)) return false;
  bool too_large = false;
  while (client.is_member && !client.is_leaving) {
    auto rest = std::string_view(client.in).substr(client.read);
    auto frame = wire::frame_in(rest, wire::kFrameLimit, too_large);
    if (too_large) return false;
    if (!frame) break;
    answer(client, *frame);
    client.read += wire::kSizeBytes + frame->size();
  }
  client.in.erase(0, std::exchange(client.read, 0));
  flush(client);
  return true;
}

bool StoreServer::greet(Client& client) {
  std::string_view bytes = client.in;
  auto begin = bytes.substr(0, wire::kMagic.size());
  if (begin != wire::kMagic.substr(0, begin.size())) return false;
  if (begin.size() < wire::kMagic.size()) return true;
  bool too_large = false;
  auto frame = wire::frame_in(bytes.substr(begin.size()), wire::kGreetingLimit, too_large);
  if (too_large) return false;
  if (!frame) return true;
  auto greeting = wire::read_greeting(*frame);
  if (!greeting) return false;
  client.read = begin.size() + wire::kSizeBytes + frame->size();
  auto why = members_.admit(*greeting);
  if (!why.empty()) {
    refuse(client, why);
    // Whoever waits for a rank of a job that is mixed waits in vain.
    for (const auto& [fd, other] : clients_)
      if (!members_.mixed().empty() && other->missing > 0 && !other->is_leaving) refuse(*other, members_.mixed());
    return true;
  }
  client.is_member = true;
  client.rank = greeting->rank;
  ++connections_[client.rank];
  --strangers_;
  wire::Writer reply(client.out);
  reply.number(0);
  reply.byte(static_cast<std::uint8_t>(Status::ok));
  reply.finish();
  return true;
}

void StoreServer::refuse(Client& client, const std::string& why) {
  wire::Writer reply(client.out);
  reply.number(client.number);
  reply.byte(static_cast<std::uint8_t>(Status::refused));
  reply.text(why);
  reply.finish();
  client.is_leaving = true;
  flush(client);
}

void StoreServer::answer(Client& client, std::string_view bytes) {
  forget_wish(client);
  wire::Reader request(bytes);
  client.number = request.number();
  if (!members_.mixed().empty()) return refuse(client, members_.mixed());
  auto kind = static_cast<Request>(request.byte());
  auto keys = request.texts();
  auto key = keys.empty() ? std::string() : keys.front();
  auto values = request.texts();
  auto number = request.number();
  if (!request.good()) return refuse(client, "a request that is none");
  if (kind == Request::get) return want(client, client.number, std::move(keys));
  std::vector<std::string> result;
  switch (kind) {
    case Request::set:
      for (std::size_t i = 0; i < std::min(keys.size(), values.size()); ++i) put(keys[i], std::move(values[i]));
      break;
    case Request::append: {
      auto found = values_.find(key);
      put(key, (found == values_.end() ? "" : found->second) + (values.empty() ? "" : values.front()));
      break;
    }
    case Request::add: {
      auto found = values_.find(key);
      if (found != values_.end() && __builtin_add_overflow(number, count_in(found->second), &number))
        return refuse(client, "a count that no number of 64 bits holds");
      put(key, std::to_string(number));
      break;
    }
    case Request::compare_set: {
      if (values.size() < 2) return refuse(client, "a request that is none");
      auto found = values_.find(key);
      bool fits = found == values_.end() ? values[0].empty() : found->second == values[0];
      if (fits) put(key, values[1]);
      result.push_back(fits ? values[1] : found == values_.end() ? values[0] : found->second);
      break;
    }
    case Request::remove:
      number = static_cast<std::int64_t>(values_.erase(key));
      break;
    case Request::check:
      number = std::all_of(keys.begin(), keys.end(), [&](const auto& each) { return values_.contains(each); });
      break;
    case Request::count:
      number = static_cast<std::int64_t>(values_.size());
      break;
    case Request::absent:
      for (const auto& [rank, connections] : connections_)
        if (connections == 0) result.push_back(std::to_string(rank));
      break;
    default:
      return refuse(client, "a request that is none");
  }
  wire::Writer reply(client.out);
  reply.number(client.number);
  reply.byte(static_cast<std::uint8_t>(Status::ok));
  reply.texts(result);
  reply.number(number);
  reply.finish();
}

void StoreServer::want(Client& client, std::int64_t number, std::vector<std::string> keys) {
  client.number = number;
  client.wanted = std::move(keys);
  client.missing = 0;
  for (const auto& key : client.wanted) {
    if (values_.contains(key)) continue;
    ++client.missing;
    waiting_[key].push_back(client.socket.get());
  }
  if (client.missing == 0) reply_with_values(client);
}

void StoreServer::forget_wish(Client& client) {
  if (client.missing > 0)
    for (const auto& key : client.wanted)
      if (auto found = waiting_.find(key); found != waiting_.end()) std::erase(found->second, client.socket.get());
  client.missing = 0;
  client.wanted.clear();
}

void StoreServer::reply_with_values(Client& client) {
  std::vector<std::string> values;
  for (const auto& key : client.wanted) {
    auto found = values_.find(key);  // one that came and was removed since is not brought back
    values.push_back(found == values_.end() ? "" : found->second);
  }
  wire::Writer reply(client.out);
  reply.number(client.number);
  reply.byte(static_cast<std::uint8_t>(Status::ok));
  reply.texts(values);
  reply.number(0);
  reply.finish();
  client.wanted.clear();
}

void StoreServer::put(const std::string& key, std::string value) {
  values_[key] = std::move(value);
  auto found = waiting_.find(key);
  if (found == waiting_.end()) return;
  auto clients = std::move(found->second);
  waiting_.erase(found);
  for (int fd : clients) {
    auto& client = *clients_.at(fd);
    if (--client.missing > 0) continue;
    reply_with_values(client);
    flush(client);
  }
}

void StoreServer::flush(Client& client) {
  int fd = client.socket.get();
  while (!client.out.empty()) {
    auto sent = send(fd, client.out.data(), client.out.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (sent < 0) return gone_.push_back(fd);
    client.out.erase(0, static_cast<std::size_t>(sent));
  }
  bool is_full = !client.out.empty();
  if (is_full != client.writes) watch(epoll_.get(), fd, is_full ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
  client.writes = is_full;
  // The other side closes once it has read why; a stranger that does not is late some time.
  if (client.is_leaving && client.out.empty()) shutdown(fd, SHUT_WR);
}

}  // namespace fabric::collectives
