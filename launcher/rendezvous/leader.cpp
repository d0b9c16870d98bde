#include "launcher/rendezvous/leader.h"

#include <algorithm>
#include <cstdio>

#include "launcher/os/exit_codes.h"
#include "launcher/os/signal_name.h"

namespace fabric::rendezvous {
namespace {

std::string in_seconds(std::chrono::nanoseconds time) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", std::chrono::duration<double>(time).count());
  return text;
}

template <class T>
void lower(T& first, const std::optional<T>& other) {
  if (other && *other < first) first = *other;
}

}  // namespace

Leader::Leader(const Settings& settings, const NodeInfo& own, Time now)
    : settings_(settings), own_id_(own.id), policy_(settings.max_restarts), last_beat_(now) {
  join_until_ = now + in_clock(settings.timing.join);
}

Leader::Leader(const Settings& settings, const NodeInfo& own, const Roster& roster, const Gone& gone, Time now)
    : Leader(settings, own, now) {
  base_ = roster;
  settings_.run_id = roster.run_id;
  gone_ = gone;
  round_ = roster.round;
  policy_.resume(roster.charged, roster.stale, roster.best_step);
  phase_ = Phase::stopping;
  // Others may notice the loss as much later as silence takes.
  expect_until_ = now + settings_.timing.silence_limit() + in_clock(settings_.timing.connect);
  expect_spares_until_ = now + in_clock(settings_.timing.connect);
  phase_until_ = *expect_until_ + in_clock(settings_.grace);
  cause_.kind = Cause::loss;
  for (const auto& node : roster.nodes)
    if (gone.contains(node.id)) lost_text_ += (lost_text_.empty() ? "" : ", ") + describe(node) + " is gone";
  lost_code_ = cause_.code = run::kRendezvous;
  cause_.text = lost_text_;
  note("this node hosts the rendezvous from now on: " + lost_text_);
}

std::optional<Refused> Leader::join(const Hello& hello, Time now) {
  const auto& node = hello.node;
  if (phase_ == Phase::over) return Refused{"the job is over", true};
  if (dismissed_.contains(node.id))
    return Refused{
        "this node was declared gone after it had been silent for " + in_seconds(settings_.timing.silence_limit()),
        true};
  if (hello.min_nodes != settings_.min_nodes || hello.max_nodes != settings_.max_nodes)
    return Refused{"the job runs with --nnodes " + std::to_string(settings_.min_nodes) + ":" +
                       std::to_string(settings_.max_nodes) + ", and this node was started with " +
                       std::to_string(hello.min_nodes) + ":" + std::to_string(hello.max_nodes),
                   true};
  bool is_fixed = settings_.min_nodes == settings_.max_nodes;
  for (const auto& [id, member] : members_)
    if (is_fixed && id != node.id && node.wanted_rank >= 0 && member.info.wanted_rank == node.wanted_rank)
      return Refused{"--node-rank " + std::to_string(node.wanted_rank) + " is taken by " + describe(member.info), true};
  if (has_started() && is_fixed && settings_.timing.replacement <= 0 && !hello.resumes && !members_.contains(node.id))
    return Refused{"the job runs already with all of its " + std::to_string(settings_.max_nodes) + " nodes", true};
  auto& member = members_[node.id];
  bool is_new = member.arrival == 0;
  if (is_new) member.arrival = ++arrivals_;
  member.info = node;
  member.heard = now;
  member.cut_at.reset();
  bool was_in_round =
      std::any_of(base_.nodes.begin(), base_.nodes.end(), [&](const NodeInfo& other) { return other.id == node.id; });
  if (hello.resumes && hello.round >= 0) {
    round_ = std::max(round_, phase_ == Phase::stopping ? hello.round : round_);
    member.plays = member.plays || was_in_round;
    gone_.erase(node.id);
  }
  Welcome welcome{own_id_,
                  settings_.timing.heartbeat,
                  settings_.timing.misses,
                  present(),
                  phase_ == Phase::running || phase_ == Phase::stopping,
                  {}};
  if (has_started()) welcome.roster = base_;
  send(node.id, welcome);
  // It may have come here without having noticed that its old host is gone, or that a round ended.
  if (phase_ == Phase::stopping && member.plays && !member.ended)
    send(node.id, Stop{hello.round, cause_.code, cause_.text});
  if (is_new && !member.plays) newcomer(member, now);
  return std::nullopt;
}

void Leader::newcomer(Member& member, Time now) {
  bool is_news = settings_.max_nodes > 1 && present() < settings_.max_nodes && !settings_.started_together;
  if (phase_ == Phase::gathering && !has_started() && is_news)
    note(std::to_string(present()) + " of " + nodes_wanted() + " nodes are here: " + names());
  if (phase_ != Phase::running) return;
  int players = 0;
  bool is_ending = false;
  for (const auto& [id, other] : members_) {
    players += other.plays;
    is_ending |= other.plays && other.ended && other.ended->succeeded;
  }
  if (players >= settings_.max_nodes || is_ending) {
    base_.spares.push_back(member.info);
    tell_spares();  // first: who is told that it is a spare can rely on it
    send(member.info.id, Spare{base_});
  } else if (!rejoin_at_) {
    rejoin_at_ = now + in_clock(settings_.timing.late_join);
  }
}

void Leader::tell_spares() {
  for (const auto& node : base_.nodes)
    if (members_.contains(node.id)) send(node.id, Spares{base_.spares});
}

void Leader::receive(const std::string& id, const Message& message, Time now) {
  auto found = members_.find(id);
  if (found == members_.end()) return;
  auto& member = found->second;
  member.heard = now;
  if (const auto* prepared = std::get_if<Prepared>(&message); prepared && prepared->round == round_)
    member.prepared = *prepared;
  if (const auto* ended = std::get_if<Ended>(&message)) take_end(member, *ended, now);
  if (const auto* first = std::get_if<FirstEnded>(&message); first && first->round == round_)
    require_all_at_ = now + in_clock(std::clamp(first->seconds, 0.0, 1e7));
  if (std::holds_alternative<Abandon>(message)) member.ended.reset();
  if (const auto* leave = std::get_if<Leave>(&message))
    remove(id, true, "was stopped by " + signal_name(leave->signal), 128 + std::clamp(leave->signal, 1, 64), now);
}

bool Leader::can_do_without_me() const {
  return has_started() && phase_ != Phase::over && present() - 1 >= settings_.min_nodes;
}

void Leader::end_with_me(int signal) {
  auto found = members_.find(own_id_);
  if (phase_ == Phase::over || found == members_.end()) return;
  finish({128 + signal, "node " + describe(found->second.info) + " was stopped by " + signal_name(signal), {}, {}, {}});
}

void Leader::cut(const std::string& id, Time now) {
  auto found = members_.find(id);
  if (found == members_.end()) return;
  found->second.cut_at = now;
  suspects_.push_back(id);
}

std::vector<NodeInfo> Leader::take_suspects() {
  std::vector<NodeInfo> nodes;
  for (const auto& id : std::exchange(suspects_, {}))
    if (auto found = members_.find(id); found != members_.end() && found->second.cut_at)
      nodes.push_back(found->second.info);
  return nodes;
}

void Leader::settle(const std::string& id, Fate fate, Time now) {
  auto found = members_.find(id);
  if (phase_ == Phase::over || found == members_.end() || !found->second.cut_at) return;
  if (fate == Fate::ended) remove(id, true, "is gone: its launcher ended", run::kRendezvous, now);
  if (fate == Fate::unknown) remove(id, false, "is gone: it cannot be reached any more", run::kRendezvous, now);
  if (fate == Fate::moved)
    finish({run::kRendezvous, "the job goes on under another host, which took over while this one was not heard of"});
}

void Leader::tick(Time now) {
  if (phase_ == Phase::over) return;
  send_beats(now);
  drop_silent(now);
  if (phase_ == Phase::stopping) check_stopped(now);
  if (phase_ == Phase::running && all_succeeded()) return finish({});
  if (phase_ == Phase::running) check_all_ended(now);
  if (phase_ == Phase::running && rejoin_at_ && now >= *rejoin_at_) {
    std::string who;
    for (const auto& [id, member] : members_)
      if (!member.plays) who += (who.empty() ? "" : ", ") + describe(member.info);
    rejoin_at_.reset();
    if (!who.empty()) stop({Cause::joiner, {}, "", who + " joins", 0}, now);
  }
  if (phase_ == Phase::stopping) check_stopped(now);
  if (phase_ == Phase::gathering) gather(now);
  if (phase_ == Phase::preparing) check_prepared(now);
}

void Leader::send_beats(Time now) {
  if (now < last_beat_ + settings_.timing.beat_period()) return;
  last_beat_ = now;
  tell_all(Beat{});
}

void Leader::tell_all(const Message& message) {
  for (const auto& [id, member] : members_)
    if (!member.cut_at) send(id, message);
}

void Leader::drop_silent(Time now) {
  struct Loss {
    std::string id, why;
  };
  std::vector<Loss> lost;
  for (const auto& [id, member] : members_) {
    if (id == own_id_) continue;
    if (now >= member.heard + settings_.timing.silence_limit())
      lost.push_back({id, "is gone: it was silent for " + in_seconds(now - member.heard)});
  }
  for (const auto& loss : lost) remove(loss.id, false, loss.why, run::kRendezvous, now);
}

void Leader::remove(const std::string& id, bool certain, const std::string& why, int code, Time now) {
  auto found = members_.find(id);
  if (found == members_.end()) return;
  auto member = found->second;
  auto text = describe(member.info) + " " + why;
  if (!certain) {
    send(id, Refused{"this node was declared gone after it had been silent too long", true});
    dismissed_[id] = true;
  }
  members_.erase(found);
  bool had_succeeded = member.ended && member.ended->succeeded;
  if (!had_succeeded || phase_ == Phase::over) note("node " + text);
  if (std::erase_if(base_.spares, [&](const NodeInfo& spare) { return spare.id == id; }) > 0) tell_spares();
  if (!member.plays) return;
  gone_[id] = certain;
  if (had_succeeded) return;
  lost_text_ += (lost_text_.empty() ? "" : "; ") + text;
  lost_code_ = code;
  if (phase_ == Phase::running) stop({Cause::loss, {}, id, text, code}, now);
  if (phase_ == Phase::preparing) {
    phase_ = Phase::gathering;
    phase_until_ = now + in_clock(settings_.timing.replacement);
  }
}

int Leader::present() const {
  return static_cast<int>(
      std::count_if(members_.begin(), members_.end(), [](const auto& entry) { return !entry.second.cut_at; }));
}

Time Leader::deadline() const {
  if (phase_ == Phase::over) return Time::max();
  Time first = last_beat_ + settings_.timing.beat_period();
  lower(first, rejoin_at_);
  lower(first, last_call_until_);
  lower(first, require_all_at_);
  return first;  // the other limits are far longer than the time between two beats
}

std::vector<Leader::Outgoing> Leader::take_outgoing() { return std::exchange(outgoing_, {}); }

std::vector<std::string> Leader::take_notes() { return std::exchange(notes_, {}); }

}  // namespace fabric::rendezvous
