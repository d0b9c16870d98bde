// Feeds bytes to every reader of foreign text that the launcher has. The first letter of the input chooses it:
//   e error file, h host list, c counts, b heartbeats, v variables of other launchers, o command line, s small lists,
//   n hosts with numbers of ranks, f hostfile, w words for ssh, p packets downwards, l packets in lines, y YAML, j
//   JSON.
// Only the project's own errors may come out.
#include <array>
#include <chrono>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>
#include <fabric/plugins/environments/cluster_environment.h>

#include "launcher/run/hosts/host_list.h"
#include "launcher/run/hosts/host_messages.h"
#include "launcher/run/hosts/packet.h"
#include "launcher/run/job.h"
#include "launcher/run/machine.h"
#include "launcher/run/options.h"
#include "launcher/run/watch/error_file.h"
#include "launcher/run/watch/heartbeats.h"
#include "plugins/environments/hostlist.h"

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

template <class Function>
void allow_errors(Function function) {
  try {
    function();
  } catch (const fabric::Error&) {
  }
}

[[noreturn]] void finding() { __builtin_trap(); }

void read_error_file(const std::string& text) {
  auto found = fabric::run::parse_error_file(text);
  if (found.message.empty() == found.problem.empty() || found.message.size() > 5000) finding();
}

void beat(const std::string& text) {
  using fabric::run::Heartbeats;
  Heartbeats beats({.timeout = 10, .warmup = 100, .progress = 50});
  Heartbeats::Clock::time_point now{};
  std::size_t half = text.size() / 2;
  beats.feed(std::string_view(text).substr(0, half), now);
  beats.feed(std::string_view(text).substr(half), now + std::chrono::seconds(5));
  static_cast<void>(beats.hang(now + std::chrono::hours(1)));
  if (beats.section().size() > 2 * Heartbeats::kLongestLine ||
      beats.why_no_retry().size() > 2 * Heartbeats::kLongestLine)
    finding();
}

void read_variables(const std::string& text) {
  auto env = std::make_shared<fabric::MapEnv>();
  for (const auto& line : lines_of(text)) {
    auto equal = line.find('=');
    // A file of that name may be anything on this machine.
    if (equal != std::string::npos && !line.starts_with("LSB_DJOB_RANKFILE"))
      env->set(line.substr(0, equal), line.substr(equal + 1));
  }
  allow_errors([&] {
    auto found = fabric::detect_environment(env);
    auto info = found->rank_info();
    if (info.world_size < 1 || info.rank < 0 || info.rank >= info.world_size) finding();
    static_cast<void>(found->main_address());
    found->validate_settings(2, 1);
  });
  for (const auto& name : fabric::available_environments())
    allow_errors([&] { static_cast<void>(fabric::make_environment(name, env)->rank_info()); });
  allow_errors([&] {
    auto options = fabric::run::parse_options({"./train"}, *env).options;
    static_cast<void>(fabric::run::complete_from_slurm(options, *env));
    static_cast<void>(fabric::run::count_workers(options.nproc, *env));
  });
}

void read_small_lists(const std::string& text) {
  allow_errors([&] { static_cast<void>(fabric::run::streams_of(text, 3, "--tee")); });
  allow_errors([&] { static_cast<void>(fabric::run::parse_ranks(text, "--local-ranks-filter")); });
  allow_errors([&] { static_cast<void>(fabric::run::parse_signals(text, "--stop-on")); });
}

void read_hosts(const std::vector<fabric::run::Host>& hosts) {
  for (const auto& host : hosts)
    if (fabric::run::bare_name(host).empty() || host.name.starts_with("-") || host.slots < 0) finding();
}

void read_packet(const fabric::run::Packet& packet) {
  if (fabric::run::unpack(fabric::run::pack(packet)) != packet) finding();
  static_cast<void>(fabric::run::read_hello(packet));
  static_cast<void>(fabric::run::read_job(packet));
  static_cast<void>(fabric::run::read_answer(packet));
  static_cast<void>(fabric::run::read_end(packet));
}

// As they come over a connection: in two pieces.
void read_packets(const std::string& text) {
  fabric::run::PacketReader reader;
  for (auto part : {text.substr(0, text.size() / 2), text.substr(text.size() / 2)}) {
    reader.feed(part);
    while (auto packet = reader.next()) read_packet(*packet);
  }
}

// What was read can be written, and is then the same.
void read_settings(fabric::Tree (*read)(const std::string&), std::string (*write)(const fabric::Tree&),
                   const std::string& text) {
  allow_errors([&] {
    auto once = write(read(text));
    if (write(read(once)) != once) finding();
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0]) {
    case 'e':
      read_error_file(text);
      break;
    case 'h':
      allow_errors([&] { static_cast<void>(fabric::expand_hostlist(text)); });
      break;
    case 'c':
      allow_errors([&] { static_cast<void>(fabric::expand_counts(text)); });
      break;
    case 'b':
      beat(text);
      break;
    case 'v':
      read_variables(text);
      break;
    case 'o':
      allow_errors([&] { static_cast<void>(fabric::run::parse_options(lines_of(text), fabric::MapEnv())); });
      break;
    case 's':
      read_small_lists(text);
      break;
    case 'n':
      allow_errors([&] { read_hosts(fabric::run::parse_hosts(text)); });
      break;
    case 'f':
      allow_errors([&] { read_hosts(fabric::run::parse_hostfile(text, "hosts")); });
      break;
    case 'w':
      allow_errors([&] { static_cast<void>(fabric::run::split_words(text, "--ssh-args")); });
      break;
    case 'p':
      read_packets(text);
      break;
    case 'l':
      for (const auto& line : lines_of(text))
        if (auto packet = fabric::run::read_packet_line("mark", line)) read_packet(*packet);
      break;
    case 'y':
      read_settings([](const std::string& given) { return fabric::read_yaml(given); },
                    [](const fabric::Tree& tree) { return fabric::write_yaml(tree); }, text);
      break;
    case 'j':
      read_settings([](const std::string& given) { return fabric::read_json(given); },
                    [](const fabric::Tree& tree) { return fabric::write_json(tree); }, text);
      break;
    default:
      return -1;
  }
  return 0;
}
