#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "plugins/collectives/waits/wait_board.h"

namespace fabric::collectives {

/// One wait of this rank that takes long. Tells the others where it waits, finds out whether they wait for one another,
/// and announces the wait well before its end.
///
/// Two ranks wait for each other when each is at an operation that the other has not begun, on two lanes: one is in the
/// caller's `save`, say, the other at the end of a ddp step. No rank of the two can ever get on. Where one of them is
/// in the check ahead of its operation, the other comes to that check as well, with its own operation: so all ranks of
/// that group find the mismatch, where they would have found it had they been on one lane, and the group stays usable.
/// Of two checks the one whose lane has the smaller name is taken. Where none is in a check, both give up.
class LongWait {
 public:
  /// `what`: the operation in words. `in_check`: it is the check ahead of it that waits.
  LongWait(Group& group, std::string what, bool in_check, std::chrono::steady_clock::time_point begin);
  /// Tells the others that the wait is over.
  ~LongWait();
  LongWait(const LongWait&) = delete;
  LongWait& operator=(const LongWait&) = delete;

  /// Called now and then while the wait goes on. Throws MismatchError where it can have no end.
  void look();
  /// How long to wait until the next look.
  std::chrono::milliseconds pause() const { return pause_; }

 private:
  bool waits_in_vain_for(const WaitingPlace& place) const;
  [[noreturn]] void give_up(const WaitingPlace& other);
  void announce(const std::vector<WaitingPlace>& places);

  Group& group_;
  std::string what_;
  bool in_check_;
  std::chrono::steady_clock::time_point begin_, announce_at_;
  std::chrono::milliseconds pause_{1000};
  std::vector<std::int64_t> suspects_;  // versions of the places seen in the last look, by rank
  bool published_ = false;
  bool is_quiet_ = false;  // the store does not answer: the wait goes on without it
};

/// What each rank of the group does, one line for each: "\n  rank 1: ddp step 12". `known` holds texts by rank; the
/// others are asked. Empty where nobody can tell.
std::string lines_of_ranks(const Group& group, std::vector<std::string> known);

}  // namespace fabric::collectives
