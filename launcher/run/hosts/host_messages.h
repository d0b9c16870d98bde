#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/run/hosts/packet.h"

namespace fabric::run {

/// What the far end of a connection says first.
struct HostHello {
  std::string version, name, program;
  int port = 0;  // free, and kept so
  int processors = 0, gpus = 0;
  std::vector<std::string> addresses;
};

/// What it is told to run.
struct HostJob {
  std::string secret;
  std::string folder;                  // from which the program is started
  bool hosts_rendezvous = false;       // this host does
  double patience = 15;                // seconds without a sign of life
  std::vector<std::string> endpoints;  // where the rendezvous is
  int port = 0;                        // of it; 0: this host is alone
  std::vector<std::string> expected;   // names of the hosts, by node rank
  std::vector<std::string> words;      // behind `fabric run`
};

/// What it answers when it is asked about a folder.
struct HostAnswer {
  long long milliseconds = 0;  // of its clock, since 1970
  bool has_folder = false;
};

Packet to_packet(const HostHello& hello);
Packet to_packet(const HostJob& job);
Packet to_packet(const HostAnswer& answer);
/// Nothing when the packet is another.
std::optional<HostHello> read_hello(const Packet& packet);
std::optional<HostJob> read_job(const Packet& packet);
std::optional<HostAnswer> read_answer(const Packet& packet);
/// Of a launcher's "ended": its exit code.
std::optional<int> read_end(const Packet& packet);

}  // namespace fabric::run
