// How a node finds the host of the rendezvous, and what it does when the host is gone.
#include <algorithm>

#include "launcher/os/exit_codes.h"
#include "launcher/rendezvous/node.h"

namespace fabric::rendezvous {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kMostReturns = 5;
constexpr milliseconds kRetry{200}, kLongestPause{1000};
constexpr seconds kResolveLimit{5}, kResolveAgain{5}, kTellAfter{5}, kStrangerPatience{15}, kHomePeriod{1};

}  // namespace

void Node::connect_to_self(Time now) {
  auto [mine, theirs] = connected_pair();
  server_->adopt(std::move(theirs));
  server_->set_other_host(std::nullopt);
  host_ = goal_node_ = setup_.own;
  say_hello(std::make_unique<Connection>(epoll_.get(), std::move(mine), "this node", Handshake::Role::client, job_key_),
            now);
}

void Node::say_hello(std::unique_ptr<Connection> connection, Time now) {
  upstream_ = std::move(connection);
  is_member_ = false;
  heard_ = now;
  Hello hello{setup_.own, setup_.settings.min_nodes, setup_.settings.max_nodes};
  hello.resumes = was_member_ && roster_;
  hello.round = roster_ ? roster_->round : -1;
  upstream_->send(hello);
}

void Node::search(Time now) {
  if (auto moved = server_->take_moved(); moved && server_->leader() && !server_->leader()->has_started()) {
    say_("the job lives on under another host, " + describe(*moved) + "; joining it");
    server_->resign(true);
    server_->set_other_host(moved);
    upstream_.reset();
    goal_ = Goal::host;
    goal_node_ = *moved;
    was_member_ = false;
    next_try_ = now;
  }
  go_home(now);
  if (upstream_) {
    if (is_member_ || now < heard_ + in_clock(timing_.connect)) return;
    upstream_.reset();
    problem_ = "it does not answer";
    next_try_ = now + kRetry;
    if (goal_ == Goal::next_host && now >= elect_until_) {
      gone_[goal_node_.id] = false;
      elect(now);
    }
    return;
  }
  if (connect_attempt_) {
    connect_attempt_->tick(now);
    take_connect_attempt(now);
    return;
  }
  if (goal_ == Goal::endpoint && now >= join_until_) return fail(why_not_found());
  if (now >= next_try_) begin_dialing(now);
}

// Whoever hosts has brought it before it listens. It is looked at again as long as nobody has let us in, since the
// hosting node may be late, and a file that is there may be one that was left by an earlier job.
bool Node::waits_for_secret(Time now) {
  if (setup_.secret_file.empty() || was_member_) return false;
  auto secret = read_secret(setup_.secret_file);
  if (secret.empty()) return !setup_.has_secret && now < secret_until_;
  setup_.has_secret = true;
  job_key_ = key_of_job(secret, setup_.settings.run_id);
  server_->set_key(job_key_);
  probes_.set_key(job_key_);
  return false;
}

void Node::begin_dialing(Time now) {
  if (waits_for_secret(now)) {
    next_try_ = now + kRetry / 4;
    return;
  }
  auto targets = goal_ == Goal::endpoint ? endpoint_targets(now) : targets_of(goal_node_);
  connect_attempt_ = std::make_unique<ConnectAttempt>(epoll_.get(), targets, job_key_, now + in_clock(timing_.connect));
  take_connect_attempt(now);
}

std::vector<Target> Node::endpoint_targets(Time now) {
  if (!resolve_at_ || now >= *resolve_at_) {
    endpoint_addresses_.clear();
    for (const auto& host : setup_.endpoint_hosts)
      for (const auto& address : resolve(host, kResolveLimit, problem_)) endpoint_addresses_.push_back(address);
    resolve_at_ = Clock::now() + (endpoint_addresses_.empty() ? seconds(0) : kResolveAgain);
  }
  std::vector<Target> targets;
  for (const auto& address : endpoint_addresses_)
    for (int port : setup_.ports) targets.push_back({address, port});
  return targets;
}

void Node::take_connect_attempt(Time now) {
  while (auto reached = connect_attempt_->take_reached()) {
    if (reached->here.id == setup_.own.id) continue;
    connect_attempt_.reset();
    pause_ = kRetry / 4;
    return say_hello(std::move(reached->connection), now);
  }
  if (!connect_attempt_->is_over()) return;
  bool refused = connect_attempt_->any_refused(), hung_up = connect_attempt_->any_hung_up();
  const auto& failures = connect_attempt_->failures();
  bool strangers = std::any_of(failures.begin(), failures.end(), [](const auto& one) { return one.stranger; });
  if (!failures.empty()) problem_ = connect_attempt_->failures_in_words();
  connect_attempt_.reset();
  if (goal_ == Goal::endpoint) {
    next_try_ = now + pause_;
    pause_ = std::min(pause_ * 2, kLongestPause);
    auto waited = now - (join_until_ - in_clock(setup_.settings.timing.join));
    if (was_member_ && refused)
      return fail("the host of the rendezvous, at " + where() + ", ended before the job began");
    if ((strangers || is_endpoint_taken_) && setup_.ports.size() == 1 && waited > kStrangerPatience)
      return fail(why_not_found());
    if (!has_told_ && waited > kTellAfter) {
      has_told_ = true;
      say_("waiting for the host of the rendezvous at " + where() + " (" + problem_ + "), at most " +
           std::to_string(static_cast<int>(setup_.settings.timing.join)) + " s");
    }
  } else if (!roster_) {
    goal_ = Goal::endpoint;
    next_try_ = now + kRetry;
  } else if (goal_ == Goal::host && hung_up && ++returns_ <= kMostReturns) {
    next_try_ = now + kRetry;
  } else if (goal_ == Goal::host || refused || now >= elect_until_) {
    gone_[goal_node_.id] = refused;
    elect(now);
  } else {
    next_try_ = now + kRetry;
  }
}

void Node::lose_host(Loss loss, Time now) {
  // A host that was stopped reads this first when it goes on, and so does not take us for one of its own.
  if (loss == Loss::silent && upstream_) upstream_->send(Abandon{});
  upstream_.reset();
  is_member_ = false;
  next_try_ = now;
  if (server_->leader()) return connect_to_self(now);
  if (!roster_ || host_.id.empty()) {
    goal_ = Goal::endpoint;
  } else if (loss == Loss::silent) {
    gone_[host_.id] = false;
    elect(now);
  } else {
    // A connection may break while the launchers at both ends live. If that is all, it goes on as if nothing was.
    goal_ = Goal::host;
    goal_node_ = host_;
    returns_ = 0;
  }
}

void Node::elect(Time now) {
  auto why = describe(host_) + ", which hosted the rendezvous, is gone";
  if (is_running_ && !stop_) stop_ = Stop{roster_->round, run::kRendezvous, why};
  // Where the network is cut between this node and the host alone, the others send us back to it, however often we ask.
  if (!lost_at_) lost_at_ = now;
  if (now >= *lost_at_ + in_clock(setup_.settings.timing.join))
    return fail(why + " for this node, and no other let it in within " +
                std::to_string(static_cast<int>(setup_.settings.timing.join + 0.5)) + " s");
  auto next = next_host(*roster_, gone_);
  if (!next) return fail(why + ", and there is no other node");
  if (next->id == setup_.own.id) return take_over(now);
  say_(why + "; " + describe(*next) + " is the next to host");
  goal_ = Goal::next_host;
  goal_node_ = host_ = *next;
  server_->set_other_host(host_);
  elect_until_ = now + timing_.silence_limit() + in_clock(timing_.connect);
  next_try_ = now;
}

void Node::take_over(Time now) {
  server_->begin_hosting(std::make_unique<Leader>(setup_.settings, setup_.own, *roster_, gone_, now));
  // Nodes that come late ask at the endpoint.
  if (is_endpoint_here())
    for (int port : setup_.ports)
      if (listen(port)) break;
  home_at_ = now;
  connect_to_self(now);
}

// A node that was started again at the endpoint would begin a second job; it is told that the first lives on.
void Node::go_home(Time now) {
  if (!server_->leader() || !roster_ || endpoint_addresses_.empty()) return;
  if (home_) {
    home_->tick(now);
    while (auto reached = home_->take_reached())
      if (reached->here.id != setup_.own.id && reached->here.host_id == reached->here.id)
        reached->connection->send(Moved{setup_.own});
    if (!home_->is_over()) return;
    home_.reset();
    home_at_ = now + kHomePeriod;
  } else if (now >= home_at_) {
    std::vector<Target> targets;
    for (const auto& address : endpoint_addresses_)
      for (int port : setup_.ports) targets.push_back({address, port});
    home_ = std::make_unique<ConnectAttempt>(epoll_.get(), targets, job_key_, now + in_clock(timing_.connect));
  }
}

bool Node::is_endpoint_here() {
  if (endpoint_addresses_.empty()) endpoint_targets(Clock::now());
  return is_own_host(setup_.endpoint_hosts.front(), endpoint_addresses_);
}

std::string Node::where() const { return with_port(setup_.endpoint_hosts.front(), setup_.ports.front()); }

std::string Node::why_not_found() const {
  auto limit = std::to_string(static_cast<int>(setup_.settings.timing.join + 0.5));
  std::string text = "the host of the rendezvous was not found at " + where() + " within " + limit + " s";
  if (!problem_.empty()) text += " (" + problem_ + ")";
  if (is_endpoint_taken_)
    if (auto owner = port_owner(setup_.ports.front()))
      return text + ". The port is held by " + *owner + ", which is not of this job; give another port";
  if (!setup_.settings.expected.empty()) text += ". Missing: node 0 (" + setup_.settings.expected.front() + ")";
  return text + ". Does its launcher run? If this node is to host, add --rdzv-conf is_host=true";
}

}  // namespace fabric::rendezvous
