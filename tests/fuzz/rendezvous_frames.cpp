// Feeds bytes to what launchers read from the network: cmake -DFABRIC_FUZZ=ON with clang, then
// fabric_fuzz_rendezvous CORPUS -max_len=20000.
#include <cstdint>
#include <string>

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
  leader.join(Hello{"", own, 1, 3}, now);
  leader.tick(now);
  leader.receive("a", Prepared{.reached = own.addresses, .port = 5}, now);
  leader.tick(now);
  if (const auto* hello = std::get_if<Hello>(&message)) leader.join(*hello, now);
  leader.receive("a", message, now);
  for (int i = 0; i < 5; ++i) leader.tick(now += std::chrono::seconds(20)), leader.take_outgoing();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  // A bare message gets its header here, so that changes of it need not guess the length.
  if (bytes.starts_with("{")) {
    std::string header = "FAB1";
    for (int shift = 24; shift >= 0; shift -= 8) header += static_cast<char>(bytes.size() >> shift);
    bytes = header + bytes;
  }
  FrameReader reader;
  reader.feed(bytes);
  try {
    while (auto tree = reader.next()) {
      auto message = to_message(*tree);
      if (to_tree(to_message(to_tree(message))) != to_tree(message)) __builtin_trap();
      give_to_host(message);
    }
  } catch (const FrameError&) {  // anything else is a finding
  }
  return 0;
}
