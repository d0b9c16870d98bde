#include "plugins/collectives/waits/long_wait.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

#include <c10/util/Exception.h>

#include <fabric/base/log.h>

#include "plugins/collectives/check.h"
#include "plugins/collectives/group.h"
#include "plugins/collectives/plain_number.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr seconds kAnnounceAfter{30};
constexpr milliseconds kLongestPause{10'000};
constexpr milliseconds kAnswer{1000};

std::string whole_seconds(steady_clock::duration time) {
  return std::to_string(std::chrono::duration_cast<seconds>(time).count()) + " s";
}

}  // namespace

LongWait::LongWait(Group& group, const char* operation, std::int64_t bytes, steady_clock::time_point begin)
    : group_(group), operation_(operation), bytes_(bytes), in_check_(group.checked != nullptr), begin_(begin) {
  std::string name = in_check_ ? describe(*group.checked) : operation;
  if (!in_check_ && bytes >= 0) name += " of " + std::to_string(bytes) + " bytes";
  what_ = Activity::of_process().within_task(name);
  announce_at_ = begin + std::min<steady_clock::duration>(kAnnounceAfter, group.id.timeout / 2);
  suspects_.resize(group.lane->members.size());
}

LongWait::~LongWait() {
  if (!published_ || is_quiet_) return;
  try {
    group_.board->publish(here(false));
  } catch (const std::exception& error) {
    log::debug(std::string("the end of a wait could not be told: ") + error.what());
  }
}

WaitingPlace LongWait::here(bool waits) const {
  return {.waits = waits,
          .in_check = in_check_,
          .lane = group_.lane->name,
          .number = group_.lane->begun,
          .operation = operation_,
          .bytes = bytes_,
          .what = what_};
}

bool LongWait::waits_in_vain_for(const WaitingPlace& place) const {
  if (!place.waits || place.lane == group_.lane->name) return false;
  if (place.begun_on(group_.lane->name) >= group_.lane->begun) return false;
  auto* theirs = group_.board->lane(place.lane);
  return theirs && theirs->begun < place.number;
}

// A backward pass counts its operations when they start, and waits for all of them under one name.
bool LongWait::is_at_odds_with(const WaitingPlace& place) const {
  if (in_check_ || place.in_check || group_.watches_all_reduces()) return false;
  if (place.lane != group_.lane->name || place.number != group_.lane->begun) return false;
  return place.operation != operation_ || place.bytes != bytes_;
}

void LongWait::require_no_odds(const std::vector<WaitingPlace>& places) {
  const auto& members = group_.lane->members;
  std::vector<std::string> known(members.size());
  bool at_odds = false;
  for (std::size_t i = 0; i < members.size(); ++i) {
    const auto& place = places[static_cast<std::size_t>(members[i])];
    at_odds = at_odds || is_at_odds_with(place);
    if (place.lane == group_.lane->name && place.number == group_.lane->begun) known[i] = place.what;
  }
  if (!at_odds) return;
  known[static_cast<std::size_t>(group_.id.rank)] = what_;
  auto mine = "rank " + std::to_string(group_.id.rank) + ": the ranks call different collectives, so none can end.";
  group_.abandon(mine);
  throw MismatchError(mine + lines_of_ranks(group_, std::move(known)) +
                      "\nCall the same operation with the same shape and type on every rank. The process group has to "
                      "be made again");
}

void LongWait::explain_failure() {
  if (is_quiet_) return;
  std::vector<WaitingPlace> places;
  try {
    places = group_.board->places();
  } catch (const std::exception&) {
    is_quiet_ = true;
    return;  // the store is gone as well, which says more
  }
  require_no_odds(places);
}

// What an ended rank sent last may still be on its way: only the second look believes it.
void LongWait::require_all_there(std::vector<int> absent) {
  std::erase_if(absent, [&](int rank) {
    const auto& members = group_.lane->members;
    return std::find(members.begin(), members.end(), rank) == members.end();
  });
  for (int rank : absent)
    if (std::find(absent_.begin(), absent_.end(), rank) != absent_.end())
      throw std::runtime_error("the process of rank " + std::to_string(rank) + " ended, or left the job");
  absent_ = std::move(absent);
}

void LongWait::hear_nothing(const std::exception& error) {
  is_quiet_ = true;
  pause_ = milliseconds(1000);
  const auto& members = group_.lane->members;
  const bool is_stuck = dynamic_cast<const c10::DistStoreError*>(&error) != nullptr;
  is_server_gone_ = !is_stuck && !group_.id.ranks.store_is_external && group_.board->rank() != 0 &&
                    std::find(members.begin(), members.end(), 0) != members.end();
  log::debug(std::string("a long wait goes on without the store: ") + error.what());
}

void LongWait::look() {
  if (is_server_gone_) throw std::runtime_error("the process of rank 0 ended, or left the job");
  if (is_quiet_) return;
  std::vector<WaitingPlace> places;
  std::vector<int> absent;
  try {
    if (!published_) {
      published_ = true;
      group_.board->publish(here(true));
    }
    // A look brings a word of every rank: where these are many they take turns, or the store would be busy for long.
    constexpr std::size_t kLookTogether = 256;
    auto turns = group_.lane->members.size() / kLookTogether + 1;
    if ((static_cast<std::size_t>(group_.id.rank) + looks_++) % turns != 0) return;
    places = group_.board->places();
    absent = group_.board->absent_ranks();
  } catch (const std::exception& error) {
    return hear_nothing(error);
  }
  require_no_odds(places);
  require_all_there(std::move(absent));
  pause_ = absent_.empty() ? std::min(pause_ * 2, kLongestPause) : milliseconds(1000);
  for (std::size_t i = 0; i < group_.lane->members.size(); ++i) {
    const auto& place = places[static_cast<std::size_t>(group_.lane->members[i])];
    auto seen = std::exchange(suspects_[i], 0);
    if (!waits_in_vain_for(place)) continue;
    bool is_theirs = place.in_check && (!in_check_ || place.lane < group_.lane->name);
    bool is_ours = in_check_ && !is_theirs;
    if (is_ours) continue;  // they come here
    suspects_[i] = place.version;
    pause_ = milliseconds(1000);
    // Without a check nothing else tells that the place is not that of a wait which has just ended.
    if (is_theirs || seen == place.version) give_up(place);
  }
  auto now = steady_clock::now();
  if (now >= announce_at_) return announce(places);
  pause_ = std::min(pause_, std::chrono::ceil<milliseconds>(announce_at_ - now));
}

void LongWait::give_up(const WaitingPlace& other) {
  auto mine = "rank " + std::to_string(group_.id.rank) + ": " + what_ +
              " cannot end, since other ranks are in another operation: " + other.what;
  auto& theirs = *group_.board->lane(other.lane)->group;
  if (other.in_check) {
    try {
      come_to_check(theirs, what_);
    } catch (const std::exception&) {
      // Only now: others that wait here have to find out by themselves, and to come to that check.
      group_.abandon(mine);
      throw;
    }
  }
  group_.abandon(mine);
  theirs.abandon(mine);
  std::vector<std::string> known(group_.lane->members.size());
  known[static_cast<std::size_t>(group_.id.rank)] = what_;
  throw MismatchError("rank " + std::to_string(group_.id.rank) +
                      ": the ranks call different collectives, which wait for one another." +
                      lines_of_ranks(group_, std::move(known)) +
                      "\nCall the same operations in the same order on every rank. The process group has to be made "
                      "again");
}

void LongWait::announce(const std::vector<WaitingPlace>& places) {
  announce_at_ = begin_ + 2 * (steady_clock::now() - begin_);
  // One rank of those that wait here speaks for all.
  for (int member : group_.lane->members) {
    const auto& place = places[static_cast<std::size_t>(member)];
    bool waits_here = place.waits && place.lane == group_.lane->name;
    if (member == group_.board->rank()) break;
    if (waits_here) return;
  }
  std::vector<std::string> answers;
  try {
    answers = group_.board->ask(kAnswer);
  } catch (const std::exception&) {
    is_quiet_ = true;
    answers.resize(places.size());
  }
  std::map<std::string, std::vector<int>> others;
  for (int member : group_.lane->members) {
    const auto& place = places[static_cast<std::size_t>(member)];
    const auto& answer = answers[static_cast<std::size_t>(member)];
    if (member == group_.board->rank()) continue;
    auto text = place.waits ? "waits in " + place.what : answer.empty() ? "does not answer" : "is in " + answer;
    if (text.starts_with("is in outside")) text = "is " + answer;
    others[text].push_back(member);
  }
  auto line = "rank " + std::to_string(group_.board->rank()) + " waits in " + what_ + " for " +
              whole_seconds(steady_clock::now() - begin_);
  for (const auto& [text, ranks] : others) line += "; " + list_of_ranks(ranks) + " " + text;
  log::warn(line + ". The wait ends after " + plain_number(group_.id.timeout.count() / 1000.0) + " s");
}

std::string lines_of_ranks(const Group& group, std::vector<std::string> known) {
  if (!group.board) return "";
  std::vector<std::string> answers;
  try {
    answers = group.board->ask(kAnswer);
  } catch (const std::exception&) {
    return "";  // without the store nobody can be asked
  }
  std::string text;
  constexpr std::size_t kShown = 16;
  for (std::size_t i = 0; i < known.size() && i < kShown; ++i) {
    const auto& answer = answers[static_cast<std::size_t>(group.lane->members[i])];
    text += "\n  rank " + std::to_string(i) + ": " +
            (!known[i].empty() ? known[i]
             : answer.empty()  ? "does not answer"
                               : answer);
  }
  if (known.size() > kShown) text += "\n  … (" + std::to_string(known.size()) + " ranks in all)";
  return text;
}

}  // namespace fabric::collectives
