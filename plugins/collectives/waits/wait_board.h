#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <c10/util/intrusive_ptr.h>

namespace c10d {
class Store;
}

namespace fabric::collectives {

class Group;
class StoreClient;

/// The operations of one group, in the order that all its ranks share.
struct Lane {
  std::string name;          // the same on all ranks; "" is the job's whole group
  std::vector<int> members;  // by their ranks in the job
  Group* group = nullptr;
  std::int64_t begun = 0;  // operations so far
};

/// Where a rank of the job waits, and how far it got on every lane. Once its wait is over: where it waited last.
struct WaitingPlace {
  std::int64_t version = 0;  // another one for each wait
  bool waits = false;
  bool in_check = false;  // in the check ahead of an operation, which a rank that waits elsewhere can come to as well
  std::string lane;
  std::int64_t number = 0;  // of the operation on its lane
  std::string operation;    // its name alone
  std::int64_t bytes = -1;  // what the rank brings to it, where all have to bring as much
  std::string what;
  std::map<std::string, std::int64_t> begun;  // by lane

  std::int64_t begun_on(const std::string& lane_name) const {
    auto found = begun.find(lane_name);
    return found == begun.end() ? 0 : found->second;
  }
};

/// Through the store the ranks of a job tell one another where they wait, once that takes long, and answer what they
/// are doing. Used by the thread that waits; answers come from a thread of its own, which reads this process's
/// Activity.
class WaitBoard {
 public:
  /// Before the ranks meet, so that every rank's entry is there afterwards. `answers`: starts the thread.
  WaitBoard(c10::intrusive_ptr<c10d::Store> store, int rank, int size, bool answers);
  ~WaitBoard();
  WaitBoard(const WaitBoard&) = delete;
  WaitBoard& operator=(const WaitBoard&) = delete;

  int rank() const { return rank_; }
  std::shared_ptr<Lane> add_lane(const std::string& name, std::vector<int> members, Group* group);
  /// Null where this rank has no such lane.
  Lane* lane(const std::string& name) const;

  /// Tells the others where this rank waits, or that it no longer does. Throws what the store throws, within seconds.
  void publish(WaitingPlace place);
  std::vector<WaitingPlace> places();
  /// Ranks of the job whose processes ended or left it, as far as the store tells.
  std::vector<int> absent_ranks();
  /// What each rank is doing now, by rank; empty for one that does not answer in time.
  std::vector<std::string> ask(std::chrono::milliseconds timeout);

 private:
  struct Answering;
  std::vector<std::string> keys(const char* kind) const;

  c10::intrusive_ptr<c10d::Store> store_;
  StoreClient* client_ = nullptr;  // under store_; null where that is another's
  int rank_, size_;
  std::int64_t version_ = 0;
  std::vector<std::weak_ptr<Lane>> lanes_;
  std::shared_ptr<Answering> answering_;
};

}  // namespace fabric::collectives
