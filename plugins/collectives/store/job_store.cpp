#include "plugins/collectives/store/job_store.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <fabric/base/error.h>

#include "plugins/collectives/rank_list.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Entry {
  c10::intrusive_ptr<c10d::Store> store;
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

std::string place_of(const RankInfo& ranks) { return ranks.main_address + ":" + std::to_string(ranks.main_port); }

bool accepts_connections(const addrinfo* addresses) {
  for (const auto* each = addresses; each; each = each->ai_next) {
    int fd = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    timeval limit{.tv_sec = 1, .tv_usec = 0};  // for hosts that answer nothing
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    bool accepted = ::connect(fd, each->ai_addr, each->ai_addrlen) == 0;
    int reason = errno;
    close(fd);
    errno = reason;
    if (accepted) return true;
  }
  return false;
}

// LibTorch's client waits a second after a connection that was refused, which is most of the start of a job whose rank
// 0 is not the first. Refusals on one machine cost nothing, so this asks more often; other failures are left to
// LibTorch.
void wait_for_server(const RankInfo& ranks, milliseconds timeout) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* addresses = nullptr;
  if (getaddrinfo(ranks.main_address.c_str(), std::to_string(ranks.main_port).c_str(), &hints, &addresses) != 0) return;
  auto end = steady_clock::now() + timeout;
  auto pause = milliseconds(2);
  while (!accepts_connections(addresses) && errno == ECONNREFUSED && steady_clock::now() + pause < end) {
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, milliseconds(50));
  }
  freeaddrinfo(addresses);
}

c10::intrusive_ptr<c10d::Store> connect(const RankInfo& ranks, milliseconds timeout) {
  if (ranks.main_port <= 0 || ranks.main_port > 65535)
    throw ConfigError(
        "main_port is " + std::to_string(ranks.main_port) +
        "; a job of several ranks needs the port (1 to 65535) on which rank 0 can be reached. Set MASTER_PORT");
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(ranks.main_port);
  options.isServer = ranks.rank == 0 && !ranks.store_is_external;
  options.waitWorkers = false;  // meet() waits, and can tell who is missing
  options.timeout = timeout;
  auto begin = steady_clock::now();
  if (!options.isServer) {
    wait_for_server(ranks, timeout);
    auto left = std::chrono::duration_cast<milliseconds>(begin + timeout - steady_clock::now());
    options.timeout = std::max(left, milliseconds(1));
  }
  try {
    return c10::make_intrusive<c10d::TCPStore>(ranks.main_address, options);
  } catch (const std::exception& error) {
    if (options.isServer)
      throw CollectiveError("rank 0 cannot serve the job's store at " + place_of(ranks) + ": " + error.what() +
                            "\nIf the port is taken, set MASTER_PORT to a free one on every rank");
    auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
    if (waited < timeout / 2)
      throw CollectiveError("rank " + std::to_string(ranks.rank) + " cannot join the job's store at " +
                            place_of(ranks) + ": " + error.what());
    throw TimeoutError(
        ranks.rank, "connecting to the job's store at " + place_of(ranks), waited,
        ranks.store_is_external ? "The launcher serves it and did not answer" : "Rank 0 serves it and did not come");
  }
}

Key key_of(const RankInfo& ranks) { return {getpid(), ranks.main_address, ranks.main_port}; }

std::mutex& entries_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

int serve_job_store(const std::string& address, milliseconds timeout) {
  std::lock_guard lock(entries_mutex());
  for (const auto& [key, entry] : entries())
    if (entry.at_free_port && std::get<0>(key) == getpid() && std::get<1>(key) == address) return std::get<2>(key);
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.waitWorkers = false;
  options.timeout = timeout;
  try {
    auto store = c10::make_intrusive<c10d::TCPStore>(address, options);
    int port = store->getPort();
    entries()[Key{getpid(), address, port}] = Entry{.store = std::move(store), .at_free_port = true};
    return port;
  } catch (const std::exception& error) {
    throw CollectiveError("rank 0 cannot serve the job's store at " + address + ": " + error.what() +
                          "\nIf it is not reached under that name, set MASTER_ADDR and MASTER_PORT");
  }
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
  if (!entry.store) entry.store = connect(ranks, timeout);
  // A launcher's store outlives restarts, and so would the keys of the ranks before.
  auto prefix = "fabric/" + std::to_string(ranks.restart_count) + "/" + std::to_string(entry.groups++);
  auto store = c10::make_intrusive<c10d::PrefixStore>(prefix, entry.store);
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
