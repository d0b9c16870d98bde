#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "plugins/collectives/store/store_sockets.h"

namespace fabric::collectives {

/// A connection to a StoreServer, as LibTorch's backends want it. Waits end with the timeout: c10::DistStoreError;
/// c10::DistNetworkError when the server is gone, ConfigError when it serves nobody any more. Calls may come from
/// several threads, one after the other.
class StoreClient : public c10d::Store {
 public:
  /// Tries until the store is there and takes this client in. Throws TimeoutError when the time is over, ConfigError
  /// with both jobs' names when the store is another job's.
  static c10::intrusive_ptr<StoreClient> connect(const StorePlace& place, const wire::Greeting& greeting,
                                                 std::chrono::milliseconds timeout);
  StoreClient(Descriptor socket, std::string address, int port, wire::Greeting greeting,
              std::chrono::milliseconds timeout);

  int port() const { return port_; }
  /// Lets a call that waits in another thread fail, and all that follow.
  void interrupt();
  /// Ranks that were connected and are no more, ascending: their processes ended, or left the job.
  std::vector<int> absent_ranks();

  c10::intrusive_ptr<c10d::Store> clone() override;
  using Store::compareSet;
  using Store::set;
  void set(const std::string& key, const std::vector<std::uint8_t>& value) override;
  std::vector<std::uint8_t> compareSet(const std::string& key, const std::vector<std::uint8_t>& expected,
                                       const std::vector<std::uint8_t>& desired) override;
  std::vector<std::uint8_t> get(const std::string& key) override;
  std::int64_t add(const std::string& key, std::int64_t value) override;
  bool deleteKey(const std::string& key) override;
  bool check(const std::vector<std::string>& keys) override;
  std::int64_t getNumKeys() override;
  void wait(const std::vector<std::string>& keys) override;
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override;
  void append(const std::string& key, const std::vector<std::uint8_t>& value) override;
  std::vector<std::vector<std::uint8_t>> multiGet(const std::vector<std::string>& keys) override;
  void multiSet(const std::vector<std::string>& keys, const std::vector<std::vector<std::uint8_t>>& values) override;
  bool hasExtendedApi() const override { return true; }

 private:
  struct Reply {
    std::vector<std::string> values;
    std::int64_t number = 0;
  };
  Reply ask(wire::Request request, const std::vector<std::string>& keys, const std::vector<std::string>& values,
            std::int64_t number, std::chrono::milliseconds timeout);
  Reply ask(wire::Request request, const std::vector<std::string>& keys, const std::vector<std::string>& values = {},
            std::int64_t number = 0) {
    return ask(request, keys, values, number, timeout_);
  }

  Descriptor socket_;
  std::string address_;
  int port_;
  wire::Greeting greeting_;
  std::mutex mutex_;
  std::string in_, out_;
  std::int64_t number_ = 0;
};

}  // namespace fabric::collectives
