#include "plugins/collectives/store/tcp_store.h"

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <fabric/base/error.h>

namespace fabric::collectives {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

c10::intrusive_ptr<c10d::Store> connect_to_tcp_store(const RankInfo& ranks, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(ranks.main_port);
  options.isServer = false;
  options.waitWorkers = false;  // meet() waits, and can tell who is missing
  options.timeout = timeout;
  auto place = ranks.main_address + ":" + std::to_string(ranks.main_port);
  auto begin = steady_clock::now();
  try {
    return c10::make_intrusive<c10d::TCPStore>(ranks.main_address, options);
  } catch (const std::exception& error) {
    auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
    if (waited < timeout / 2)
      throw CollectiveError("rank " + std::to_string(ranks.rank) + " cannot join the job's store at " + place + ": " +
                            error.what());
    throw TimeoutError(ranks.rank, "connecting to the job's store at " + place, waited,
                       "The launcher serves it and did not answer");
  }
}

}  // namespace fabric::collectives
