// The rounds of a job, as its leader decides them: a state machine without sockets and clocks.
//
// gathering → preparing → running → stopping → gathering of the next round, or the end.
//
// Invariants:
// - One leader decides; members only report. A decision is a message to all members of the round.
// - A round starts when every member of it has answered `prepare` with an address that all reach.
// - No round begins before all workers of the one before it are gone, or their node counts as gone.
// - After a loss only a majority of the last round's nodes goes on, unless the settings say otherwise.
// - A restart is charged once for the whole job; the loss or the arrival of a node is not charged to the program.
#include <algorithm>
#include <set>

#include "launcher/os/exit_codes.h"
#include "launcher/rendezvous/leader.h"

namespace fabric::rendezvous {
namespace {

/// For nodes to kill what ignores the end of the grace time, and to tell us.
constexpr std::chrono::seconds kStopReserve{30};

std::string join_words(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

void Leader::gather(Time now) {
  int here = present();
  // Whoever was cut off either comes back or is counted out in a moment.
  if (here != static_cast<int>(members_.size())) return;
  if (!has_started()) return gather_first(here, now);
  std::set<std::string> ids;
  for (const auto& [id, member] : members_) ids.insert(id);
  if (settings_.timing.majority && !has_quorum(base_, gone_, ids))
    return finish({run::kRendezvous,
                   "the network may be cut and the other part of the job alive, so this part without a majority of the "
                   "last round's " +
                       std::to_string(base_.nodes.size()) +
                       " nodes ends; --rdzv-conf majority=false would let both go on",
                   lost_text_,
                   {},
                   {}});
  if (here >= settings_.min_nodes) return prepare(now);
  if (now >= phase_until_) fail_for_want_of_nodes();
}

void Leader::gather_first(int here, Time now) {
  if (here >= settings_.max_nodes) return prepare(now);
  bool enough = here >= settings_.min_nodes;
  if (enough && !last_call_until_) {
    last_call_until_ = std::min(now + in_clock(settings_.timing.last_call), join_until_);
    auto wait = static_cast<int>(settings_.timing.last_call + 0.5);
    if (wait > 0) note("enough nodes are here; waiting " + std::to_string(wait) + " s for more");
  }
  if (!enough) last_call_until_.reset();
  if (last_call_until_ && now >= *last_call_until_) return prepare(now);
  if (!enough && now >= join_until_) finish({run::kRendezvous, missing(), {}, {}, {}});
}

void Leader::prepare(Time now) {
  std::vector<Member*> all;
  for (auto& [id, member] : members_) all.push_back(&member);
  auto is_incumbent = [&](const Member* member) {
    const auto& id = member->info.id;
    return id == own_id_ ||
           std::any_of(base_.nodes.begin(), base_.nodes.end(), [&](const NodeInfo& node) { return node.id == id; });
  };
  std::sort(all.begin(), all.end(), [&](const Member* one, const Member* other) {
    bool first = is_incumbent(one), second = is_incumbent(other);
    return first != second ? first : one->arrival < other->arrival;
  });
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i]->plays = static_cast<int>(i) < settings_.max_nodes;
    all[i]->prepared.reset();
    all[i]->ended.reset();
  }
  phase_ = Phase::preparing;
  phase_until_ = now + settings_.timing.silence_limit() + in_clock(2 * settings_.timing.connect);
  for (const auto* member : all)
    if (member->plays) send(member->info.id, Prepare{round_, first_player()});
}

void Leader::check_prepared(Time now) {
  std::vector<std::string> late;
  int port = 0;
  for (const auto& [id, member] : members_) {
    if (!member.plays) continue;
    if (!member.prepared) {
      late.push_back(id);
    } else if (!member.prepared->problem.empty()) {
      return finish(
          {run::kLauncherFailed, "node " + describe(member.info) + ": " + member.prepared->problem, {}, {}, {}});
    } else {
      port = std::max(port, member.prepared->port);
    }
  }
  if (late.empty()) {
    auto address = settings_.master_addr.empty() ? common_address() : settings_.master_addr;
    if (!address || port == 0) return finish({run::kRendezvous, unreachable(), {}, {}, {}});
    return start(*address, port);
  }
  if (now < phase_until_) return;
  for (const auto& id : late) remove(id, false, "did not answer when the round was prepared", run::kRendezvous, now);
}

const NodeInfo& Leader::first_player() const {
  const NodeInfo* first = nullptr;
  for (const auto& [id, member] : members_)
    if (member.plays && (!first || comes_before(member.info, *first))) first = &member.info;
  return *first;
}

std::optional<std::string> Leader::common_address() const {
  for (const auto& address : first_player().addresses) {
    bool all = std::all_of(members_.begin(), members_.end(), [&](const auto& entry) {
      if (!entry.second.plays) return true;
      const auto& reached = entry.second.prepared->reached;
      return std::find(reached.begin(), reached.end(), address) != reached.end();
    });
    if (all) return address;
  }
  return std::nullopt;
}

std::string Leader::unreachable() const {
  std::string text =
      "no address of node " + describe(first_player()) + ", where rank 0 would be, can be reached by all nodes";
  for (const auto& [id, member] : members_)
    if (member.plays && !member.prepared->failed.empty())
      text += "; from " + describe(member.info) + ": " + join_words(member.prepared->failed);
  return text + ". --iface or --local-addr on that node chooses another";
}

void Leader::start(const std::string& address, int port) {
  Roster roster{.round = round_, .run_id = settings_.run_id, .host_id = own_id_};
  roster.charged = policy_.charged();
  roster.stale = policy_.stale();
  roster.best_step = policy_.best_step();
  for (const auto& [id, member] : members_) (member.plays ? roster.nodes : roster.spares).push_back(member.info);
  std::sort(roster.nodes.begin(), roster.nodes.end(), comes_before);
  std::sort(roster.spares.begin(), roster.spares.end(), comes_before);
  base_ = roster;
  gone_.clear();
  cause_ = {};
  lost_text_.clear();
  rejoin_at_.reset();
  require_all_at_.reset();
  last_call_until_.reset();
  phase_ = Phase::running;
  for (const auto& node : roster.nodes) send(node.id, Start{roster, settings_.max_restarts, address, port});
  for (const auto& node : roster.spares) send(node.id, Spare{roster});
}

void Leader::take_end(Member& member, const Ended& ended, Time now) {
  bool recovers = expect_until_.has_value();
  if (!member.plays || (ended.round != round_ && !recovers)) return;
  if (phase_ != Phase::running && phase_ != Phase::stopping) return;
  member.ended = ended;
  // While all are being stopped, workers fail for want of their peers; that is no cause of its own.
  bool is_cause = ended.failed && (phase_ == Phase::running || ended.forbids_retry);
  if (is_cause) {
    Cause cause{Cause::failure, ended, member.info.id, ended.cause, ended.code};
    if (phase_ == Phase::running)
      stop(cause, now);
    else
      cause_ = cause;
  } else if (ended.succeeded && phase_ == Phase::running) {
    // Whoever comes now comes too late.
    rejoin_at_.reset();
    // Whether it was the last is seen in `tick`, after all that has come was read: the next word may be Abandon.
  }
}

void Leader::stop(Cause cause, Time now) {
  cause_ = std::move(cause);
  phase_ = Phase::stopping;
  rejoin_at_.reset();
  require_all_at_.reset();
  phase_until_ = now + in_clock(settings_.grace) + kStopReserve;
  for (const auto& [id, member] : members_)
    if (member.plays && !member.ended) send(id, Stop{round_, cause_.code, cause_.text});
}

void Leader::check_all_ended(Time now) {
  if (!require_all_at_ || now < *require_all_at_) return;
  std::string running;
  for (const auto& [id, member] : members_)
    if (member.plays && !member.ended) running += (running.empty() ? "" : ", ") + describe(member.info);
  Cause cause{Cause::failure,
              {},
              "",
              "rank 0 ended well, but after --require-all ranks still ran on " + running,
              run::kRequireAll};
  cause.end.code = cause.code;
  cause.end.can_retry = false;
  cause.end.cause = cause.text;
  stop(cause, now);
}

void Leader::check_stopped(Time now) {
  if (expect_until_) {
    for (const auto& node : base_.nodes) {
      if (gone_.contains(node.id) || members_.contains(node.id)) continue;
      if (now < *expect_until_) return;
      gone_[node.id] = false;
      lost_text_ += (lost_text_.empty() ? "" : "; ") + describe(node) + " did not come back";
    }
    // A spare takes the place of a node that is gone at once, not with a restart of its own.
    for (const auto& node : base_.spares)
      if (!gone_.contains(node.id) && !members_.contains(node.id) && now < expect_spares_until_) return;
  }
  std::vector<std::string> late;
  for (const auto& [id, member] : members_)
    if (member.plays && !member.ended) late.push_back(id);
  if (!late.empty() && now < phase_until_) return;
  for (const auto& id : late) remove(id, false, "did not stop its workers in time", run::kRendezvous, now);
  expect_until_.reset();
  decide(now);
}

void Leader::decide(Time now) {
  bool lost = !lost_text_.empty();
  if (cause_.kind == Cause::failure && (!lost || cause_.end.forbids_retry)) {
    long long step = -1;
    for (const auto& [id, member] : members_)
      if (member.ended) step = std::max(step, member.ended->step);
    const auto& failure = cause_.end;
    auto decision = policy_.decide({failure.code, failure.can_retry, failure.forbids_retry, step});
    if (!decision.again) return finish({decision.code, decision.reason, failure.cause, failure.report, cause_.node_id});
    note("starting all workers again: restart " + std::to_string(policy_.charged()) + " of at most " +
         std::to_string(policy_.max_restarts()) + ", after " + failure.cause);
  } else {
    // A failure beside the loss of a node is put down to that, and does not count.
    note("starting all workers again on the nodes that are here: " + (lost ? lost_text_ : cause_.text));
  }
  ++round_;
  phase_ = Phase::gathering;
  phase_until_ = now + in_clock(settings_.timing.replacement);
  if (settings_.timing.replacement > 0 && present() < settings_.min_nodes)
    note("waiting for a node in place of the one that is gone");
  gather(now);
}

void Leader::fail_for_want_of_nodes() {
  auto left = "; " + std::to_string(present()) + " of its nodes are left, and " + nodes_wanted() + " must be there";
  if (cause_.kind == Cause::failure)
    return finish({cause_.end.code, lost_text_ + left, cause_.end.cause, cause_.end.report, cause_.node_id});
  finish({lost_code_ ? lost_code_ : int{run::kRendezvous}, lost_text_ + left, {}, {}, {}});
}

void Leader::finish(Finish end) {
  phase_ = Phase::over;
  for (const auto& [id, member] : members_) send(id, end);
}

bool Leader::all_succeeded() const {
  return lost_text_.empty() && std::all_of(members_.begin(), members_.end(), [](const auto& entry) {
           return !entry.second.plays || (entry.second.ended && entry.second.ended->succeeded);
         });
}

std::string Leader::nodes_wanted() const {
  auto least = std::to_string(settings_.min_nodes), most = std::to_string(settings_.max_nodes);
  return least == most ? least : least + " to " + most;
}

std::string Leader::names() const {
  std::vector<NodeInfo> all;
  for (const auto& [id, member] : members_) all.push_back(member.info);
  std::sort(all.begin(), all.end(), comes_before);
  std::string text;
  for (const auto& node : all) text += (text.empty() ? "" : ", ") + describe(node);
  return text;
}

std::string Leader::missing() const {
  std::set<int> come;
  for (const auto& [id, member] : members_) come.insert(member.info.wanted_rank);
  std::string absent;
  for (int rank = 0; rank < settings_.min_nodes && !come.contains(-1); ++rank) {
    if (come.contains(rank)) continue;
    absent += (absent.empty() ? "" : ", ") + ("node " + std::to_string(rank));
    if (rank < static_cast<int>(settings_.expected.size()))
      absent += " (" + settings_.expected[static_cast<std::size_t>(rank)] + ")";
  }
  if (absent.empty()) absent = std::to_string(settings_.min_nodes - present()) + " more";
  return "within " + std::to_string(static_cast<int>(settings_.timing.join + 0.5)) + " s only " +
         std::to_string(present()) + " of " + nodes_wanted() + " nodes came: " + names() + ". Missing: " + absent;
}

}  // namespace fabric::rendezvous
