#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "launcher/os/descriptor.h"
#include "plugins/collectives/store/store_wire.h"

// Where the job's store listens, and how its clients find it. No LibTorch here.
namespace fabric::collectives {

/// Sockets that listen for a job's store: on the addresses of this machine that `address` stands for, on all where it
/// stands for none of them.
struct StoreListeners {
  std::vector<Descriptor> sockets;
  int port = 0;
  std::string own_address;  // under which this process reaches them
};
/// `spans_machines`: others must reach it, so that a name which leads to this machine's loopback alone, as Debian's own
/// names do, is no reason to listen there only. `port` 0: the system chooses. Returns no sockets, with errno set, when
/// the port cannot be had.
StoreListeners listen_for_store(const std::string& address, int port, bool spans_machines);

/// Where a job's store may be. Several ports where the first was derived from the job's number and may be taken.
struct StorePlace {
  std::string address;
  std::vector<int> ports;
};

/// A connection on which the greeting was answered with a welcome.
struct StoreConnection {
  Descriptor socket;
  int port = 0;
};
/// Tries until the store is there and takes this client in. Throws TimeoutError when the time is over, ConfigError with
/// both jobs' names when the store is another job's.
StoreConnection find_store(const StorePlace& place, const wire::Greeting& greeting, std::chrono::milliseconds timeout);
/// One try: the words with which a store that listens there refuses us. Empty when it does not, or nothing does.
std::string refusal_of_store(const std::string& address, int port, const wire::Greeting& greeting,
                             std::chrono::milliseconds timeout);

}  // namespace fabric::collectives
