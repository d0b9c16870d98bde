// Feeds bytes to what launchers read from the network: cmake -DFABRIC_FUZZ=ON with clang, then
// fabric_fuzz_rendezvous CORPUS -max_len=20000. The first letter chooses the reader: { a message, which is sealed here
// so that changes of it get past the MAC; F frames as they come; C and S the handshake of the end that connects or
// listens.
#include <cstdint>
#include <string>

#include "launcher/os/visible.h"
#include "launcher/rendezvous/handshake.h"
#include "launcher/rendezvous/leader.h"
#include "launcher/rendezvous/message.h"

using namespace fabric::rendezvous;

// A message that can be read goes to a host that is in the middle of a round, too, as a node's would.
static void give_to_host(const Message& message) {
  Settings settings;
  settings.max_nodes = 3;
  settings.timing.last_call = 0;
  NodeInfo own;
  own.id = own.host = "a";
  own.addresses = {"10.0.0.1"};
  Time now(std::chrono::seconds(1000));
  Leader leader(settings, own, now);
  leader.join(Hello{own, 1, 3}, now);
  leader.tick(now);
  leader.receive("a", Prepared{.reached = own.addresses, .port = 5}, now);
  leader.tick(now);
  if (const auto* hello = std::get_if<Hello>(&message)) leader.join(*hello, now);
  leader.receive("a", message, now);
  for (int i = 0; i < 5; ++i) {
    leader.tick(now += std::chrono::seconds(20));
    // A failure that anybody reports never ends the job well.
    const auto* ended = std::get_if<Ended>(&message);
    for (const auto& outgoing : leader.take_outgoing())
      if (const auto* finish = std::get_if<Finish>(&outgoing.message))
        if (ended && ended->failed && finish->code == 0) __builtin_trap();
  }
  for (const auto& note : leader.take_notes())
    for (char letter : fabric::visible(note))
      if (static_cast<unsigned char>(letter) < 32) __builtin_trap();
}

static void read_frames(const std::string& bytes) {
  FrameReader reader(Key{});
  reader.feed(bytes);
  try {
    while (auto tree = reader.next()) {
      auto message = to_message(*tree);
      if (to_tree(to_message(to_tree(message))) != to_tree(message)) __builtin_trap();
      give_to_host(message);
    }
  } catch (const FrameError&) {  // anything else is a finding
  }
}

static void shake_hands(Handshake::Role role, std::string_view bytes) {
  Handshake handshake(role, Key{});
  while (!bytes.empty() && handshake.state() == Handshake::State::running) {
    auto size = std::min<std::size_t>(handshake.wanted(), bytes.size());
    if (size == 0) __builtin_trap();
    handshake.feed(bytes.substr(0, size));
    bytes.remove_prefix(size);
    if (handshake.take_output().size() > 100) __builtin_trap();
  }
  // Our nonce is random, so that no bytes of a file can be the proof.
  if (handshake.state() == Handshake::State::done) __builtin_trap();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (bytes.starts_with("{")) read_frames(seal(Key{}, 0, bytes));
  if (bytes.starts_with("F")) read_frames(bytes.substr(1));
  if (bytes.starts_with("C")) shake_hands(Handshake::Role::client, std::string_view(bytes).substr(1));
  if (bytes.starts_with("S")) shake_hands(Handshake::Role::server, std::string_view(bytes).substr(1));
  return 0;
}
