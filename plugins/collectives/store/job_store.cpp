#include "plugins/collectives/store/job_store.h"

#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <tuple>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "fabric/base/ports_internal.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/store/store_client.h"
#include "plugins/collectives/store/store_server.h"
#include "plugins/collectives/store/tcp_store.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Entry {
  c10::intrusive_ptr<c10d::Store> store;
  std::unique_ptr<StoreServer> server;
  std::string own_address;  // under which this process reaches the server
  int port = 0;             // the server's
  int groups = 0;
  bool at_free_port = false;  // the system chose it
};
using Key = std::tuple<pid_t, std::string, int>;

// Never destroyed: other ranks may need the server until this process ends, and a forked child must not close its
// parent's connections.
std::map<Key, Entry>& entries() {
  static auto* all = new std::map<Key, Entry>;
  return *all;
}

Key key_of(const RankInfo& ranks) { return {getpid(), ranks.main_address, ranks.main_port}; }

std::mutex& entries_mutex() {
  static std::mutex mutex;
  return mutex;
}

std::int64_t token_of_process() {
  static std::map<pid_t, std::int64_t> tokens;  // a fork is another process; under the mutex of the entries
  auto [found, is_new] = tokens.try_emplace(getpid());
  if (is_new) {
    std::random_device random;
    found->second = static_cast<std::int64_t>(std::uint64_t{random()} << 32 | random());
  }
  return found->second;
}

wire::Greeting greeting_of(const RankInfo& ranks) {
  char host[HOST_NAME_MAX + 1] = {};
  gethostname(host, HOST_NAME_MAX);
  constexpr std::size_t kLongest = 1000;
  return {.job = ranks.job.substr(0, kLongest),
          .world_size = ranks.world_size,
          .restart_count = ranks.restart_count,
          .rank = ranks.rank,
          .who = "process " + std::to_string(getpid()) + " on host " + host,
          .token = token_of_process()};
}

// Who has the port that rank 0 should serve at.
std::string owner_of(const std::string& address, int port, const RankInfo& ranks) {
  constexpr milliseconds kMoment{1000};
  auto job = refusal_of_store(address, port, greeting_of(ranks), kMoment);
  if (!job.empty()) return job;
  auto owner = port_owner(port);
  return owner ? "it is taken by " + *owner : "";
}

// Ranks on one machine meet on its loopback, whatever name the machine has.
std::string meeting_address(const RankInfo& ranks) {
  bool is_local =
      ranks.main_address.starts_with("127.") || ranks.main_address == "localhost" || ranks.main_address == "::1";
  return is_on_one_machine(ranks) && !is_local ? "127.0.0.1" : ranks.main_address;
}

StorePlace place_of(const RankInfo& ranks) {
  StorePlace place{meeting_address(ranks), {ranks.main_port}};
  place.ports.insert(place.ports.end(), ranks.spare_ports.begin(), ranks.spare_ports.end());
  return place;
}

void serve(Entry& entry, const RankInfo& ranks) {
  auto place = place_of(ranks);
  std::string problems;
  for (int port : place.ports) {
    auto listeners = listen_for_store(place.address, port, !is_on_one_machine(ranks));
    if (!listeners.sockets.empty()) {
      if (port != place.ports.front())
        log::info("the job's store is at port " + std::to_string(port) + ", as others are taken: " + problems);
      entry.port = listeners.port;
      entry.own_address = listeners.own_address;
      entry.server = std::make_unique<StoreServer>(std::move(listeners.sockets), greeting_of(ranks));
      return;
    }
    int reason = errno;
    auto owner = reason == EADDRINUSE ? owner_of(place.address, port, ranks) : "";
    problems += (problems.empty() ? "" : "; ") + std::to_string(port) + ": " + std::strerror(reason) +
                (owner.empty() ? "" : " (" + owner + ")");
  }
  throw CollectiveError("rank 0 cannot serve the job's store at " + place.address + ":" + problems +
                        "\nIf the port is taken, set MASTER_PORT to a free one on every rank");
}

c10::intrusive_ptr<c10d::Store> connect(Entry& entry, const RankInfo& ranks, milliseconds timeout) {
  if (ranks.main_port <= 0 || ranks.main_port > 65535)
    throw ConfigError(
        "main_port is " + std::to_string(ranks.main_port) +
        "; a job of several ranks needs the port (1 to 65535) on which rank 0 can be reached. Set MASTER_PORT");
  if (ranks.store_is_external) return connect_to_tcp_store(ranks, timeout);
  auto place = place_of(ranks);
  if (ranks.rank == 0) {
    if (!entry.server) serve(entry, ranks);
    place = {entry.own_address, {entry.port}};
  }
  return StoreClient::connect(place, greeting_of(ranks), timeout);
}

// Two processes that are one rank of a job would share keys; the store of a launcher does not tell them apart.
void claim_rank(c10d::Store& store, const RankInfo& ranks) {
  auto mine = greeting_of(ranks);
  auto own = mine.who + " [" + std::to_string(mine.token) + "]";
  auto there = store.compareSet("rank/" + std::to_string(ranks.rank), "", own);
  if (there == own) return;
  throw ConfigError("rank " + std::to_string(ranks.rank) + " of " + job_in_words(ranks.job) + " is there twice: as " +
                    there.substr(0, there.find(" [")) + " and as " + mine.who +
                    ". Two jobs use one store, or a process was started twice or on its own again");
}

}  // namespace

bool is_on_one_machine(const RankInfo& ranks) {
  return ranks.num_nodes <= 1 && ranks.world_size == ranks.local_world_size;
}

int serve_job_store(const RankInfo& ranks, const std::string& address) {
  std::lock_guard lock(entries_mutex());
  for (const auto& [key, entry] : entries())
    if (entry.at_free_port && std::get<0>(key) == getpid() && std::get<1>(key) == address) return std::get<2>(key);
  auto listeners = listen_for_store(address, 0, !is_on_one_machine(ranks));
  if (listeners.sockets.empty())
    throw CollectiveError("rank 0 cannot serve the job's store at " + address + ": " + std::strerror(errno) +
                          "\nIf it is not reached under that name, set MASTER_ADDR and MASTER_PORT");
  Entry entry{.own_address = listeners.own_address, .port = listeners.port, .at_free_port = true};
  entry.server = std::make_unique<StoreServer>(std::move(listeners.sockets), greeting_of(ranks));
  int port = entry.port;
  entries()[Key{getpid(), address, port}] = std::move(entry);
  return port;
}

void forget_job_store(const RankInfo& ranks) {
  std::lock_guard lock(entries_mutex());
  auto found = entries().find(key_of(ranks));
  // Rank 0 keeps what it serves.
  if (found != entries().end() && (ranks.rank != 0 || ranks.store_is_external)) found->second.store.reset();
}

c10::intrusive_ptr<c10d::Store> open_job_store(const RankInfo& ranks, milliseconds timeout) {
  std::lock_guard lock(entries_mutex());
  auto& entry = entries()[key_of(ranks)];
  bool is_new = !entry.store;
  if (is_new) entry.store = connect(entry, ranks, timeout);
  // A launcher's store outlives restarts and serves other jobs, and so would the keys of their ranks.
  auto prefix = "fabric/" + ranks.job + "/" + std::to_string(ranks.restart_count) + "/";
  if (is_new && ranks.store_is_external) {
    c10d::PrefixStore all(prefix, entry.store);
    claim_rank(all, ranks);
  }
  auto store = c10::make_intrusive<c10d::PrefixStore>(prefix + std::to_string(entry.groups++), entry.store);
  store->setTimeout(timeout);
  return store;
}

void meet(c10d::Store& store, const std::string& place, int rank, int size, milliseconds timeout) {
  std::vector<std::string> keys;
  for (int i = 0; i < size; ++i) keys.push_back(place + "/" + std::to_string(i));
  auto begin = steady_clock::now();
  try {
    store.set(keys[rank], std::vector<std::uint8_t>{1});
    store.wait(keys, timeout);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
    std::vector<int> missing;
    try {
      for (int i = 0; i < size; ++i)
        if (!store.check({keys[i]})) missing.push_back(i);
    } catch (const std::exception&) {
      throw CollectiveError("rank " + std::to_string(rank) + ": " + place +
                            " failed: the job's store is gone, so rank 0 ended: " + error.what());
    }
    if (missing.empty()) return;  // the last one came in the meantime
    throw TimeoutError(rank, place, waited, "Still missing: " + list_of_ranks(missing));
  }
}

c10::intrusive_ptr<c10d::Store> open_private_store() { return c10::make_intrusive<c10d::HashStore>(); }

c10::intrusive_ptr<c10d::Store> sub_store(const std::string& prefix, const c10::intrusive_ptr<c10d::Store>& store) {
  return c10::make_intrusive<c10d::PrefixStore>(prefix, store);
}

}  // namespace fabric::collectives
