#include "launcher/run/hosts/host_messages.h"

#include <cstdlib>

namespace fabric::run {
namespace {

bool is(const Packet& packet, const char* kind, std::size_t size) { return packet.size() == size && packet[0] == kind; }

long long number(const std::string& text) { return std::strtoll(text.c_str(), nullptr, 10); }

Packet list(const std::string& text) { return unpack(text).value_or(Packet{}); }

}  // namespace

Packet to_packet(const HostHello& hello) {
  return {"hello",
          hello.version,
          hello.name,
          hello.program,
          std::to_string(hello.port),
          std::to_string(hello.processors),
          std::to_string(hello.gpus),
          pack(hello.addresses)};
}

std::optional<HostHello> read_hello(const Packet& packet) {
  // One of another version may say more or less; its version is the second word for ever.
  if (packet.size() < 2 || packet[0] != "hello") return std::nullopt;
  HostHello hello{.version = packet[1]};
  if (packet.size() != 8) return hello;
  hello.name = packet[2];
  hello.program = packet[3];
  hello.port = static_cast<int>(number(packet[4]));
  hello.processors = static_cast<int>(number(packet[5]));
  hello.gpus = static_cast<int>(number(packet[6]));
  hello.addresses = list(packet[7]);
  return hello;
}

Packet to_packet(const HostJob& job) {
  return {"job",
          job.secret,
          job.folder,
          job.hosts_rendezvous ? "1" : "0",
          std::to_string(job.patience),
          pack(job.endpoints),
          std::to_string(job.port),
          pack(job.expected),
          pack(job.words)};
}

std::optional<HostJob> read_job(const Packet& packet) {
  if (!is(packet, "job", 9)) return std::nullopt;
  HostJob job;
  job.secret = packet[1];
  job.folder = packet[2];
  job.hosts_rendezvous = packet[3] == "1";
  job.patience = std::strtod(packet[4].c_str(), nullptr);
  job.endpoints = list(packet[5]);
  job.port = static_cast<int>(number(packet[6]));
  job.expected = list(packet[7]);
  job.words = list(packet[8]);
  return job;
}

Packet to_packet(const HostAnswer& answer) {
  return {"answer", std::to_string(answer.milliseconds), answer.has_folder ? "1" : "0"};
}

std::optional<HostAnswer> read_answer(const Packet& packet) {
  if (!is(packet, "answer", 3)) return std::nullopt;
  return HostAnswer{number(packet[1]), packet[2] == "1"};
}

std::optional<int> read_end(const Packet& packet) {
  if (!is(packet, "ended", 2)) return std::nullopt;
  return static_cast<int>(number(packet[1]));
}

}  // namespace fabric::run
