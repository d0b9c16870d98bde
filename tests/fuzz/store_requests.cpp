// Feeds bytes to a job's store: cmake -DFABRIC_FUZZ=ON with clang, then fabric_fuzz_store CORPUS -max_len=20000. The
// first letter chooses who sends them: S a stranger, everything as it comes; M a member, whose greeting is sent here,
// each request behind a letter with its size, and framed here so that changes of it get to the store. R is no sender:
// what clients read of a reply.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/collectives/store/store_server.h"

using namespace fabric;
using namespace fabric::collectives;

namespace {

constexpr std::size_t kMostSent = 1 << 20;

void require(bool holds) {
  if (!holds) __builtin_trap();
}

wire::Greeting greeting() { return {.job = "run id fuzz", .world_size = 2, .rank = 1, .who = "process 1", .token = 5}; }

// A server that is there for one input alone, at an address that the system chooses.
struct Store {
  sockaddr_un address{};
  socklen_t size = sizeof(sa_family_t);
  Descriptor listener{socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  Descriptor client{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};

  Store() {
    address.sun_family = AF_UNIX;
    require(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
    size = sizeof address;
    require(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    require(listen(listener.get(), 4) == 0);
    require(connect(client.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
  }
};

// Sends all, then reads until the store closes the connection, as it does when there is nothing more to come.
std::string exchange(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    auto sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) break;  // the store has heard enough
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  shutdown(fd, SHUT_WR);
  std::string answers;
  char chunk[4096];
  for (ssize_t count; answers.size() < kMostSent && (count = recv(fd, chunk, sizeof chunk, 0)) > 0;)
    answers.append(chunk, static_cast<std::size_t>(count));
  return answers;
}

// Every answer is a whole frame, and says how the request went.
void check_answers(std::string_view answers) {
  bool too_large = false;
  while (auto frame = wire::frame_in(answers, wire::kFrameLimit, too_large)) {
    wire::Reader reply(*frame);
    reply.number();
    require(reply.byte() <= static_cast<std::uint8_t>(wire::Status::refused) && reply.good());
    answers.remove_prefix(wire::kSizeBytes + frame->size());
  }
  require(!too_large);
}

void frame(std::string& out, std::string_view payload) {
  auto size = static_cast<std::uint32_t>(payload.size());
  out.append(reinterpret_cast<const char*>(&size), sizeof size);
  out.append(payload);
}

std::string sent_by_member(std::string_view requests) {
  std::string out(wire::kMagic);
  wire::write(out, greeting());
  while (!requests.empty()) {
    auto size = std::min<std::size_t>(static_cast<unsigned char>(requests[0]), requests.size() - 1);
    frame(out, requests.substr(1, size));
    requests.remove_prefix(1 + size);
  }
  return out;
}

void give_to_store(const std::string& bytes) {
  Store store;
  std::vector<Descriptor> listeners;
  listeners.push_back(std::move(store.listener));
  StoreServer server(std::move(listeners), {.job = "run id fuzz", .world_size = 2});
  check_answers(exchange(store.client.get(), bytes));
}

void read_reply(std::string_view bytes) {
  bool too_large = false;
  auto frame = wire::frame_in(bytes, wire::kGreetingLimit, too_large);
  if (auto known = wire::read_greeting(frame.value_or(bytes))) {
    std::string again;
    wire::write(again, *known);
    require(wire::read_greeting(std::string_view(again).substr(wire::kSizeBytes)).has_value());
  }
  wire::Reader reply(frame.value_or(bytes));
  reply.number();
  reply.byte();
  std::size_t kept = 0;
  for (const auto& text : reply.texts()) kept += text.size();
  require(kept <= bytes.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (bytes.starts_with("S")) give_to_store(bytes.substr(1));
  if (bytes.starts_with("M")) give_to_store(sent_by_member(std::string_view(bytes).substr(1)));
  if (bytes.starts_with("R")) read_reply(std::string_view(bytes).substr(1));
  return 0;
}
