#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "launcher/os/descriptor.h"
#include "plugins/collectives/store/store_members.h"

namespace fabric::collectives {

/// The key-value store of one job, in a thread that takes no signals. Strangers, that is whoever has not sent a
/// greeting that StoreMembers admits, get five seconds, 4 KiB and a bounded number of connections; what they send is
/// never taken for the size of anything.
class StoreServer {
 public:
  static constexpr std::size_t kMostStrangers = 256;
  static constexpr std::chrono::seconds kPatience{5};

  /// The sockets listen already. Throws CollectiveError when the system refuses a thread or descriptors.
  StoreServer(std::vector<Descriptor> listeners, wire::Greeting job);
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  struct Client {
    Descriptor socket;
    std::string in, out;
    std::size_t read = 0;  // bytes of `in` that are dealt with
    bool is_member = false;
    std::int64_t rank = -1;   // of a member
    bool is_leaving = false;  // closed once `out` is sent
    bool writes = false;      // watched for room to write
    Clock::time_point since;
    // The request that waits for keys.
    std::int64_t number = 0;
    std::vector<std::string> wanted;  // all keys of the request; the reply holds their values
    std::size_t missing = 0;
  };

  void run();
  void accept_from(int listener);
  void drop(int fd);
  void drop_late_strangers();
  void read_from(Client& client);
  /// False when the client is to be dropped.
  bool greet(Client& client);
  bool serve(Client& client);
  void answer(Client& client, std::string_view request);
  void want(Client& client, std::int64_t number, std::vector<std::string> keys);
  void forget_wish(Client& client);
  void reply_with_values(Client& client);
  void put(const std::string& key, std::string value);
  void flush(Client& client);
  void refuse(Client& client, const std::string& why);

  std::vector<Descriptor> listeners_;
  StoreMembers members_;
  Descriptor epoll_, wakeup_, spare_;
  std::map<int, std::unique_ptr<Client>> clients_;
  std::size_t strangers_ = 0;
  std::map<std::int64_t, int> connections_;  // of each rank that ever was a member
  std::unordered_map<std::string, std::string> values_;
  std::unordered_map<std::string, std::vector<int>> waiting_;  // key → descriptors, some of which may wait no more
  std::vector<int> gone_;
  std::thread thread_;
};

}  // namespace fabric::collectives
