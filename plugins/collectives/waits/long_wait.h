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
///
/// On one lane two ranks are at odds when they brought different operations, or different amounts, as its n-th. Gloo
/// tells messages apart by operation and number, so that neither gets one of the other's. The check finds that before;
/// without it the first rank that sees it here breaks the group, upon which the others look as well. No rank's word
/// gets old: its n-th operation stays what it was.
///
/// Whoever waits for a rank whose process has ended waits in vain as well. Gloo mostly hears of it, but not always: a
/// connection may break while the wait begins, and a process that the rank started may keep it open. The store hears of
/// the end of each rank but the one that serves it; that one's end is the end of the store.
class LongWait {
 public:
  /// `bytes` as in Group::run.
  LongWait(Group& group, const char* operation, std::int64_t bytes, std::chrono::steady_clock::time_point begin);
  /// Tells the others that the wait is over.
  ~LongWait();
  LongWait(const LongWait&) = delete;
  LongWait& operator=(const LongWait&) = delete;

  /// Called now and then while the wait goes on. Throws MismatchError where it can have no end, std::runtime_error
  /// where a rank has ended that it waits for.
  void look();
  /// Called when the wait failed: throws MismatchError where the ranks are at odds, which is why another one broke the
  /// connections.
  void explain_failure();
  /// How long to wait until the next look.
  std::chrono::milliseconds pause() const { return pause_; }

 private:
  WaitingPlace here(bool waits) const;
  bool waits_in_vain_for(const WaitingPlace& place) const;
  bool is_at_odds_with(const WaitingPlace& place) const;
  void require_no_odds(const std::vector<WaitingPlace>& places);
  [[noreturn]] void give_up(const WaitingPlace& other);
  void require_all_there(std::vector<int> absent);
  void hear_nothing(const std::exception& error);
  void announce(const std::vector<WaitingPlace>& places);

  Group& group_;
  const char* operation_;
  std::int64_t bytes_;
  bool in_check_;  // it is the check ahead of the operation that waits
  std::string what_;
  std::chrono::steady_clock::time_point begin_, announce_at_;
  std::chrono::milliseconds pause_{1000};
  std::vector<std::int64_t> suspects_;  // versions of the places seen in the last look, by rank
  std::size_t looks_ = 0;
  bool published_ = false;
  bool is_quiet_ = false;  // the store does not answer: the wait goes on without it
  bool is_server_gone_ = false;
  std::vector<int> absent_;  // ranks that the last look missed
};

/// What each rank of the group does, one line for each: "\n  rank 1: ddp step 12". `known` holds texts by rank; the
/// others are asked. Empty where nobody can tell.
std::string lines_of_ranks(const Group& group, std::vector<std::string> known);

}  // namespace fabric::collectives
