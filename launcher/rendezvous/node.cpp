#include "launcher/rendezvous/node.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>

namespace fabric::rendezvous {
namespace {

/// After which no secret is believed to come; the hosting node brings it before it listens.
constexpr std::chrono::seconds kSecretPatience{10};

}  // namespace

Node::Node(const NodeSetup& setup, Say say)
    : setup_(setup),
      job_key_(key_of_job(setup.secret, setup.settings.run_id)),
      say_(std::move(say)),
      epoll_(above_stdio(epoll_create1(EPOLL_CLOEXEC), "the rendezvous")),
      timer_(above_stdio(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "the rendezvous")),
      probes_(epoll_.get(), job_key_, setup.own.id),
      timing_(setup.settings.timing) {
  setup_.secret.clear();
  watch(epoll_.get(), timer_.get());
  server_ = std::make_unique<Server>(epoll_.get(), job_key_, setup_.own.id, say_);
  auto now = Clock::now();
  join_until_ = now + in_clock(setup_.settings.timing.join);
  secret_until_ = now + kSecretPatience;
  next_try_ = last_beat_ = heard_ = home_at_ = elect_until_ = now;
  open_listener(now);
  arm_timer(now);
}

Node::~Node() {
  if (!setup_.secret_file.empty()) unlink(setup_.secret_file.c_str());
}

void Node::open_listener(Time now) {
  bool hosts = setup_.hosts ? *setup_.hosts : is_endpoint_here();
  for (int port : setup_.ports) {
    if (!hosts) break;
    if (!listen(port)) continue;
    setup_.own.port = port;
    host_ = setup_.own;
    // On the loopback, too, where other users of the machine reach it: the user's own secret could not be had then.
    if (!setup_.has_secret)
      say_("warning: this job has no secret, and whoever reaches port " + std::to_string(port) +
           " of this machine may take it over. Set FABRIC_RDZV_TOKEN to a random word, the same on every node");
    server_->begin_hosting(std::make_unique<Leader>(setup_.settings, setup_.own, now));
    return connect_to_self(now);
  }
  if (setup_.hosts.value_or(false)) {
    auto port = setup_.ports.front();
    throw LaunchError("port " + std::to_string(port) + ", on which the nodes are to meet, is taken by " +
                      port_owner(port).value_or("somebody who has just left it") +
                      ". Give another in --rdzv-endpoint (or --master-port), the same on every node");
  }
  is_endpoint_taken_ = hosts;
  bool is_listening = false;
  for (int i = 0; i < 10 && !is_listening; ++i) is_listening = listen(0);
  if (!is_listening) throw LaunchError("no free TCP port for the rendezvous");
}

// False when somebody else has the port.
bool Node::listen(int port) {
  bool taken = false;
  auto sockets = listen_on(setup_.listen_addresses, port, taken);
  if (port == 0 && !sockets.empty()) setup_.own.port = port_of(sockets.front());
  for (auto& socket : sockets) server_->listen(std::move(socket));
  return !sockets.empty();
}

void Node::advance() {
  epoll_event events[64];
  int count = 0;
  // All that has come is read before anybody counts as silent: it may be us who slept.
  for (int i = 0; i < 16 && (count = epoll_wait(epoll_.get(), events, 64, 0)) > 0; ++i) {
    auto now = Clock::now();
    for (int k = 0; k < count; ++k) handle(events[k].data.fd, now);
    server_->tick(now);
  }
  auto now = Clock::now();
  server_->tick(now);
  if (!finish_ && !leaves_) {
    search(now);
    keep_time(now);
  }
  server_->tick(now);
  arm_timer(now);
}

void Node::handle(int fd, Time now) {
  if (fd == timer_.get()) {
    std::uint64_t expirations = 0;
    [[maybe_unused]] auto size = read(fd, &expirations, sizeof expirations);
  } else if (upstream_ && upstream_->fd() == fd) {
    upstream_->pump();
    try {
      while (upstream_) {
        auto message = upstream_->next();
        if (!message) break;
        take(*message, now);
      }
      if (!upstream_ || !upstream_->is_closed()) return;
      if (finish_ || leaves_)
        upstream_.reset();
      else
        lose_host(Loss::closed, now);
    } catch (const FrameError& error) {
      say_(std::string("the host of the rendezvous sends nonsense: ") + error.what());
      lose_host(Loss::closed, now);
    }
  } else if (!server_->handle(fd, now) && !probes_.handle(fd)) {
    for (auto* attempt : {connect_attempt_.get(), probe_.get(), home_.get()})
      if (attempt && attempt->handle(fd)) return;
  }
}

void Node::take(const Message& message, Time now) {
  heard_ = now;
  if (const auto* welcome = std::get_if<Welcome>(&message)) {
    take_welcome(*welcome, now);
  } else if (const auto* refused = std::get_if<Refused>(&message)) {
    upstream_.reset();
    if (refused->final) return fail("the rendezvous at " + where() + " refused this node: " + refused->why);
    problem_ = refused->why;
    next_try_ = now + std::chrono::milliseconds(300);
  } else if (const auto* moved = std::get_if<Moved>(&message)) {
    upstream_.reset();
    goal_ = Goal::host;
    goal_node_ = host_ = moved->host;
    // One that we hold for gone, and others do not: without a pause this would go round as fast as it can.
    next_try_ = gone_.contains(host_.id) ? now + std::chrono::milliseconds(300) : now;
  } else if (const auto* prepare = std::get_if<Prepare>(&message)) {
    is_spare_ = false;
    begin_probing(*prepare, now);
  } else if (const auto* start = std::get_if<Start>(&message)) {
    take_roster(start->roster);
    ended_.reset();
    stop_.reset();
    start_ = *start;
    is_running_ = true;
  } else if (const auto* spare = std::get_if<Spare>(&message)) {
    take_roster(spare->roster);
    if (!is_spare_) say_("the job has all the nodes that it may have; this node is a spare and waits for a place");
    is_spare_ = true;
  } else if (const auto* spares = std::get_if<Spares>(&message)) {
    if (roster_) roster_->spares = spares->spares;
  } else if (const auto* stop = std::get_if<Stop>(&message)) {
    if (roster_ && stop->round == roster_->round && is_running_) stop_ = *stop;
  } else if (const auto* finish = std::get_if<Finish>(&message)) {
    finish_ = *finish;
    upstream_->close_sending();
  } else if (std::holds_alternative<Leave>(message) && roster_) {
    upstream_.reset();
    gone_[host_.id] = true;
    elect(now);
  }
}

void Node::take_welcome(const Welcome& welcome, Time now) {
  bool is_first = !was_member_;
  is_member_ = was_member_ = true;
  lost_at_.reset();
  heard_ = now;
  host_ = goal_node_;
  if (goal_ == Goal::endpoint && !server_->leader()) host_ = NodeInfo{.id = welcome.host_id};
  know_host(welcome.roster, welcome.host_id);
  timing_.heartbeat = std::clamp(welcome.heartbeat, 0.01, 1e6);
  timing_.misses = std::clamp(welcome.misses, 1, 1000000);
  if (!welcome.roster.nodes.empty() && !roster_) roster_ = welcome.roster;
  if (is_first && !server_->leader() && (!setup_.settings.started_together || welcome.started))
    say_("joined the job as one of " + std::to_string(welcome.here) + " nodes" +
         (welcome.started ? ", which runs already" : ""));
  if (ended_) upstream_->send(*ended_);
}

void Node::take_roster(const Roster& roster) {
  roster_ = roster;
  gone_.clear();
  know_host(roster, roster.host_id);
}

void Node::know_host(const Roster& roster, const std::string& id) {
  for (const auto* list : {&roster.nodes, &roster.spares})
    for (const auto& node : *list)
      if (node.id == id) host_ = node;
  if (server_->leader()) host_ = setup_.own;
  server_->set_other_host(server_->leader() || host_.addresses.empty() ? std::nullopt : std::optional(host_));
}

void Node::begin_probing(const Prepare& prepare, Time now) {
  prepare_ = prepare;
  stop_.reset();
  std::vector<Target> targets;
  if (prepare.first.id != setup_.own.id) targets = targets_of(prepare.first);
  probe_ = std::make_unique<ConnectAttempt>(epoll_.get(), targets, job_key_, now + in_clock(timing_.connect));
}

void Node::end_probing() {
  Prepared prepared{.round = prepare_->round};
  if (prepare_->first.id == setup_.own.id) {
    prepared.reached = setup_.own.addresses;
    reserve_port(prepared);
  } else {
    port_.reset();
  }
  while (auto reached = probe_->take_reached())
    if (reached->here.id == prepare_->first.id) prepared.reached.push_back(reached->target.address);
  for (const auto& failure : probe_->failures()) {
    // That nothing of another machine is to be found at one's own loopback is no news.
    if (prepared.failed.size() < 16 && !failure.target.address.starts_with("127.") && failure.target.address != "::1")
      prepared.failed.push_back(with_port(failure.target.address, failure.target.port) + ": " + failure.why);
  }
  probe_.reset();
  prepare_.reset();
  if (upstream_) upstream_->send(prepared);
}

void Node::reserve_port(Prepared& prepared) {
  try {
    prepared.port = setup_.settings.master_port;
    if (prepared.port == 0) {
      port_.reset();
      port_.emplace();
      prepared.port = port_->port();
    } else if (auto owner = port_owner(prepared.port)) {
      prepared.problem = "port " + std::to_string(prepared.port) + " is taken by " + *owner +
                         ". Give another --master-port, or none, and a free one is chosen";
    }
  } catch (const Error& error) {
    prepared.problem = error.what();
  }
}

void Node::keep_time(Time now) {
  if (auto* leader = server_->leader()) {
    for (const auto& node : leader->take_suspects()) probes_.begin(node, in_clock(timing_.connect), now);
    for (const auto& [id, fate] : probes_.tick(now)) leader->settle(id, fate, now);
  }
  if (probe_) {
    probe_->tick(now);
    if (probe_->is_over()) end_probing();
  }
  if (!upstream_ || !is_member_) return;
  if (now >= last_beat_ + timing_.beat_period()) {
    last_beat_ = now;
    upstream_->send(Beat{});
  }
  if (!server_->leader() && now >= heard_ + timing_.silence_limit()) lose_host(Loss::silent, now);
}

void Node::arm_timer(Time now) {
  Time first = server_->deadline();
  // One that leaves looks for nobody and sends no beats: those times would stay in the past, and each wait end at once.
  if (!leaves_) {
    if (join_until_ > now) first = std::min(first, join_until_);
    if (connect_attempt_) first = std::min(first, connect_attempt_->deadline());
    if (probe_) first = std::min(first, probe_->deadline());
    if (home_) first = std::min(first, home_->deadline());
    first = std::min(first, probes_.deadline());
    if (!upstream_ && !connect_attempt_) first = std::min(first, next_try_);
    if (server_->leader() && !home_ && home_at_ > now) first = std::min(first, home_at_);
    if (upstream_ && is_member_) first = std::min(first, last_beat_ + timing_.beat_period());
    if (upstream_ && !is_member_) first = std::min(first, heard_ + in_clock(timing_.connect));
  }
  if (finish_) first = std::min(server_->deadline(), now + std::chrono::milliseconds(50));
  auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(first - now).count();
  left = std::clamp<long long>(left, 100000, 3600000000000LL);
  itimerspec time{};
  time.it_value.tv_sec = left / 1000000000;
  time.it_value.tv_nsec = left % 1000000000;
  timerfd_settime(timer_.get(), 0, &time, nullptr);
}

void Node::report(const Ended& ended) {
  ended_ = ended;
  is_running_ = false;
  stop_.reset();
  if (upstream_ && is_member_) upstream_->send(ended);
  advance();
}

void Node::first_ended(double seconds_for_others) {
  if (upstream_ && is_member_ && roster_) upstream_->send(FirstEnded{roster_->round, seconds_for_others});
  advance();
}

void Node::leave(int signal) {
  if (leaves_ || finish_) return;
  leaves_ = true;
  if (auto* leader = server_->leader()) {
    if (leader->can_do_without_me()) {
      leader->tell_all(Leave{signal});
      server_->tick(Clock::now());
      server_->resign(false);
      upstream_.reset();
    } else {
      leader->end_with_me(signal);
    }
  } else if (upstream_ && is_member_) {
    upstream_->send(Leave{signal});
  }
  server_->tick(Clock::now());
}

void Node::linger(std::chrono::milliseconds limit) {
  auto end = Clock::now() + limit;
  for (;;) {
    advance();
    bool sent = !upstream_ || upstream_->is_closed() || upstream_->is_flushed();
    auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
    if ((sent && (!server_->leader() || server_->is_deserted())) || left <= 0) return;
    pollfd entry{fd(), POLLIN, 0};
    poll(&entry, 1, static_cast<int>(std::min<long long>(left, 50)));
  }
}

}  // namespace fabric::rendezvous
