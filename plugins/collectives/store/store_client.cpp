#include "plugins/collectives/store/store_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include <c10/util/Exception.h>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using wire::Request;

std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
std::vector<std::uint8_t> bytes_in(const std::string& text) { return {text.begin(), text.end()}; }

[[noreturn]] void store_is_gone() { C10_THROW_ERROR(DistNetworkError, "the connection to the job's store is gone"); }

}  // namespace

StoreClient::StoreClient(Descriptor socket, std::string address, int port, wire::Greeting greeting,
                         milliseconds timeout)
    : Store(timeout),
      socket_(std::move(socket)),
      address_(std::move(address)),
      port_(port),
      greeting_(std::move(greeting)) {}

c10::intrusive_ptr<StoreClient> StoreClient::connect(const StorePlace& place, const wire::Greeting& greeting,
                                                     milliseconds timeout) {
  auto found = find_store(place, greeting, timeout);
  return c10::make_intrusive<StoreClient>(std::move(found.socket), place.address, found.port, greeting, timeout);
}

void StoreClient::interrupt() { shutdown(socket_.get(), SHUT_RDWR); }

c10::intrusive_ptr<c10d::Store> StoreClient::clone() { return connect({address_, {port_}}, greeting_, timeout_); }

StoreClient::Reply StoreClient::ask(Request request, const std::vector<std::string>& keys,
                                    const std::vector<std::string>& values, std::int64_t number, milliseconds timeout) {
  std::lock_guard lock(mutex_);
  out_.clear();
  wire::Writer writer(out_);
  writer.number(++number_);
  writer.byte(static_cast<std::uint8_t>(request));
  writer.texts(keys);
  writer.texts(values);
  writer.number(number);
  writer.finish();
  auto begin = steady_clock::now();
  auto until = begin + timeout;
  auto wait_for = [&](short events) {
    while (true) {
      auto left = std::chrono::duration_cast<milliseconds>(until - steady_clock::now()).count();
      pollfd item{.fd = socket_.get(), .events = events, .revents = 0};
      int ready = poll(&item, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000)));
      if (ready > 0) return;
      if (ready < 0 && errno != EINTR) store_is_gone();
      if (steady_clock::now() < until) continue;
      // The rest of a request that is half sent would be taken for the beginning of the next one.
      if (events == POLLOUT) interrupt();
      C10_THROW_ERROR(DistStoreError, "the job's store: the wait for " + (keys.empty() ? "it" : keys.front()) +
                                          " timed out after " + std::to_string(timeout.count()) + " ms");
    }
  };
  for (std::string_view rest = out_; !rest.empty();) {
    auto sent = send(socket_.get(), rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0)
      rest.remove_prefix(static_cast<std::size_t>(sent));
    else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
      wait_for(POLLOUT);
    else
      store_is_gone();
  }
  while (true) {
    bool too_large = false;
    if (auto frame = wire::frame_in(in_, wire::kFrameLimit, too_large)) {
      wire::Reader reader(*frame);
      auto answers = reader.number();
      auto status = static_cast<wire::Status>(reader.byte());
      Reply reply;
      std::string refusal;
      if (status == wire::Status::ok) {
        reply.values = reader.texts();
        reply.number = reader.number();
      } else {
        refusal = reader.text();
      }
      if (!reader.good()) store_is_gone();
      in_.erase(0, wire::kSizeBytes + frame->size());
      if (!refusal.empty()) throw ConfigError(refusal);
      if (answers == number_) return reply;
      continue;  // to a request whose time was over
    }
    if (too_large) store_is_gone();
    char bytes[16 << 10];
    auto count = recv(socket_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (count > 0)
      in_.append(bytes, static_cast<std::size_t>(count));
    else if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
      wait_for(POLLIN);
    else
      store_is_gone();
  }
}

std::vector<int> StoreClient::absent_ranks() {
  std::vector<int> ranks;
  for (const auto& rank : ask(Request::absent, {}).values) ranks.push_back(std::atoi(rank.c_str()));
  return ranks;
}

void StoreClient::set(const std::string& key, const std::vector<std::uint8_t>& value) {
  ask(Request::set, {key}, {text_of(value)});
}

std::vector<std::uint8_t> StoreClient::compareSet(const std::string& key, const std::vector<std::uint8_t>& expected,
                                                  const std::vector<std::uint8_t>& desired) {
  return bytes_in(ask(Request::compare_set, {key}, {text_of(expected), text_of(desired)}).values.at(0));
}

std::vector<std::uint8_t> StoreClient::get(const std::string& key) {
  return bytes_in(ask(Request::get, {key}).values.at(0));
}

std::int64_t StoreClient::add(const std::string& key, std::int64_t value) {
  return ask(Request::add, {key}, {}, value).number;
}

bool StoreClient::deleteKey(const std::string& key) { return ask(Request::remove, {key}).number > 0; }

bool StoreClient::check(const std::vector<std::string>& keys) { return ask(Request::check, keys).number != 0; }

std::int64_t StoreClient::getNumKeys() { return ask(Request::count, {}).number; }

void StoreClient::wait(const std::vector<std::string>& keys) { wait(keys, timeout_); }

void StoreClient::wait(const std::vector<std::string>& keys, const milliseconds& timeout) {
  ask(Request::get, keys, {}, 0, timeout);
}

void StoreClient::append(const std::string& key, const std::vector<std::uint8_t>& value) {
  ask(Request::append, {key}, {text_of(value)});
}

std::vector<std::vector<std::uint8_t>> StoreClient::multiGet(const std::vector<std::string>& keys) {
  std::vector<std::vector<std::uint8_t>> values;
  for (const auto& value : ask(Request::get, keys).values) values.push_back(bytes_in(value));
  return values;
}

void StoreClient::multiSet(const std::vector<std::string>& keys, const std::vector<std::vector<std::uint8_t>>& values) {
  std::vector<std::string> texts;
  for (const auto& value : values) texts.push_back(text_of(value));
  ask(Request::set, keys, texts);
}

}  // namespace fabric::collectives
