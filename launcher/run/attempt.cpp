#include "launcher/run/attempt.h"

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <fstream>
#include <utility>

#include <fabric/base/error.h>

#include "launcher/os/exit_codes.h"
#include "launcher/os/signal_name.h"
#include "launcher/rendezvous/node.h"
#include "launcher/run/guard/process_tree.h"
#include "launcher/run/hosts/lifeline.h"

namespace fabric::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// How long a killed process may take to go before we stop waiting for the guardian, and for the last output.
constexpr seconds kKillLimit{2}, kDrainLimit{1};

long long nanoseconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

std::chrono::nanoseconds in_clock(double value) {
  return std::chrono::nanoseconds(static_cast<long long>(std::min(value, 1e8) * 1e9));
}

bool contains(const std::vector<int>& numbers, int number) {
  return std::find(numbers.begin(), numbers.end(), number) != numbers.end();
}

// A worker in a PID namespace has another number outside of it.
pid_t outer_pid(pid_t guardian, pid_t inner) {
  for (pid_t pid : descendants(guardian)) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/status");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("NSpid:") && line.ends_with('\t' + std::to_string(inner))) return pid;
  }
  return inner;
}

std::string start_problem(const Event& event, const AttemptContext& context) {
  std::string rank = "cannot start local rank " + std::to_string(event.worker) + ": ";
  std::string error = std::strerror(event.status);
  if (event.stage == Event::exec)
    return "cannot run " + context.program.path + ": " + exec_problem(context.program.path, event.status);
  if (event.stage == Event::folder) return "cannot enter --workdir " + context.options.workdir + ": " + error;
  if (event.stage == Event::fork && event.status == EAGAIN)
    return rank + error + ". The limit of processes is reached; see ulimit -u and pids.max of the cgroup";
  return rank + error;
}

}  // namespace

int descriptors_needed(int local_size, int nodes) {
  int strangers = static_cast<int>(rendezvous::kMostStrangers);
  return 3 + 6 * local_size + 24 + (nodes > 1 ? 2 * std::min(nodes, 1000) + 64 + strangers : 0);
}

Attempt::Attempt(const AttemptContext& context, int number) : context_(context), start_(Clock::now()) {
  attempt_.number = number;
  epoll_ = above_stdio(epoll_create1(EPOLL_CLOEXEC), "epoll");
  oom_ = count_oom_kills();
}

Attempt::~Attempt() = default;

void Attempt::watch(int fd, Source source, std::size_t index) {
  epoll_event event{.events = source == Source::console ? EPOLLOUT : EPOLLIN,
                    .data = {.u64 = (static_cast<std::uint64_t>(source) << 32) | index}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

AttemptResult Attempt::run() {
  {
    std::vector<Descriptor> kept;
    auto starts = prepare(kept);
    guardian_.emplace(starts, context_.guardian);
  }
  watch(guardian_->events(), Source::guardian);
  watch(guardian_->process(), Source::guardian_end);
  watch(context_.signals, Source::signals);
  watch(context_.children, Source::children);
  if (context_.node) watch(context_.node->fd(), Source::node);
  if (context_.lifeline) {
    watch(context_.lifeline->fd(), Source::lifeline);
    heed_lifeline();  // it may have ended while nothing ran
  }
  while (!is_over()) {
    wait();
    check_deadlines();
    context_.console.write_some();
    hold_back_or_go_on();
    watch_console();
  }
  conclude();
  return std::move(attempt_);
}

void Attempt::wait() {
  epoll_event events[64];
  int count = epoll_wait(epoll_.get(), events, 64, milliseconds_to_wait());
  for (int i = 0; i < count; ++i)
    take(static_cast<Source>(events[i].data.u64 >> 32), static_cast<std::uint32_t>(events[i].data.u64));
}

int Attempt::milliseconds_to_wait() const {
  std::optional<Clock::time_point> first;
  auto consider = [&](std::optional<Clock::time_point> time) {
    if (time && (!first || *time < *first)) first = time;
  };
  for (const auto& time : {kill_at_, give_up_at_, drain_until_, require_all_at_}) consider(time);
  if (!stopping_) consider(next_look_for_hangs());
  if (!first) return -1;
  auto left = std::chrono::ceil<milliseconds>(*first - Clock::now()).count();
  return static_cast<int>(std::clamp<long long>(left, 0, INT_MAX));
}

void Attempt::take(Source source, std::size_t index) {
  switch (source) {
    case Source::output:
    case Source::error: {
      auto& stream = source == Source::output ? *workers_[index].output : *workers_[index].error;
      bool moved = stream.is_open() && !stream.must_wait() && stream.read_some(context_.console) > 0;
      if (stream.is_open() && stream.has_ended()) {
        // The guardian has a copy of the descriptor, so that closing ours alone would not take it off the list.
        epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stream.fd(), nullptr);
        stream.finish();
      }
      if (moved && drain_until_) drain_until_ = Clock::now() + kDrainLimit;
      return;
    }
    case Source::heartbeat:
      return read_heartbeat(index);
    case Source::guardian:
      while (auto event = guardian_->next()) take_event(*event);
      return;
    case Source::guardian_end: {
      while (auto event = guardian_->next()) take_event(*event);
      auto status = guardian_->try_reap();
      if (!status || drain_until_) return;
      if (dump_) end_as_hung();
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, guardian_->process(), nullptr);
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, guardian_->events(), nullptr);
      if (!all_gone_) lose_guardian(*status);
      drain_until_ = Clock::now() + kDrainLimit;
      return;
    }
    case Source::signals:
      return take_signals();
    case Source::children:
      return look_after_guardian();
    case Source::node:
      return heed_other_nodes();
    case Source::lifeline:
      return heed_lifeline();
    case Source::stacks:
      if (dump_ && dump_->advance()) end_as_hung();
      return;
    case Source::console:
      return;
  }
}

void Attempt::take_event(const Event& event) {
  switch (event.kind) {
    case Event::started:
      return note_start(event);
    case Event::exited:
      return note_exit(event);
    case Event::all_gone:
      all_gone_ = true;
      return;
    case Event::signalled:
      if (!stopping_) {
        attempt_.signal = event.status;
        attempt_.code = 128 + event.status;
        attempt_.reason = "its guardian got " + signal_name(event.status);
        stop(AttemptResult::signalled, event.status);
      }
      return;
    case Event::start_failed:
      attempt_.reason = start_problem(event, context_);
      attempt_.code = event.stage == Event::exec ? kCannotExecute : kLauncherFailed;
      attempt_.end = AttemptResult::cannot_start;
      stopping_ = true;
      return;
  }
}

void Attempt::note_start(const Event& event) {
  auto& worker = attempt_.workers[static_cast<std::size_t>(event.worker)];
  worker.state = WorkerEnd::running;
  worker.pid = context_.guardian.pid_namespace ? outer_pid(guardian_->pid(), event.pid) : event.pid;
}

void Attempt::note_exit(const Event& event) {
  auto& worker = attempt_.workers[static_cast<std::size_t>(event.worker)];
  worker.nanoseconds = event.nanoseconds;
  worker.signal = WIFSIGNALED(event.status) ? WTERMSIG(event.status) : 0;
  worker.dumped_core = WIFSIGNALED(event.status) && WCOREDUMP(event.status);
  worker.code = worker.signal ? 128 + worker.signal : WEXITSTATUS(event.status);
  // One that had ended before we asked is not one that we stopped, even if we hear of it later.
  bool was_asked = stopping_ && event.nanoseconds >= asked_at_;
  worker.state = was_asked ? WorkerEnd::stopped : worker.code == 0 ? WorkerEnd::succeeded : WorkerEnd::failed;
  if (worker.signal == SIGKILL && !killed_) {
    auto now = count_oom_kills();
    worker.out_of_memory = now.own > oom_.own || now.machine > oom_.machine;
  }
  if (worker.state == WorkerEnd::failed && dump_) return end_as_hung();
  if (worker.state == WorkerEnd::failed && !stopping_) {
    attempt_.first = event.worker;
    attempt_.code = worker.code;
    stop(AttemptResult::failed, SIGTERM);
  }
  if (worker.state == WorkerEnd::succeeded && worker.rank == 0 && context_.options.require_all_seconds > 0) {
    if (context_.node)
      context_.node->first_ended(context_.options.require_all_seconds);
    else
      require_all_at_ = Clock::now() + in_clock(context_.options.require_all_seconds);
  }
}

void Attempt::take_signals() {
  signalfd_siginfo info;
  while (read(context_.signals, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    int number = static_cast<int>(info.ssi_signo);
    if (contains(context_.options.forward, number)) {
      guardian_->signal_workers(number, false);
    } else if (!stopping_ || attempt_.end == AttemptResult::stopped_elsewhere) {
      attempt_.signal = number;
      attempt_.code = 128 + number;
      attempt_.reason = "the launcher got " + signal_name(number);
      stop(AttemptResult::signalled, number);
      attempt_.end =
          AttemptResult::signalled;  // also where the other nodes had stopped this one, and would have gone on
      // Where every launcher is told the same, none need learn it from this one, and stop its ranks in another way.
      bool is_everywhere = context_.lifeline && context_.lifeline->has_brought(number);
      if (context_.node && !is_everywhere) context_.node->leave(number);
    } else {
      // Whoever asks again wants no grace, but a scheduler may well send the same signal twice.
      attempt_.signal = number;
      if (number == SIGINT || number == SIGQUIT) kill_now();
    }
  }
}

void Attempt::look_after_guardian() {
  signalfd_siginfo info;
  while (read(context_.children, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) continue;
  if (!guardian_->wake() || std::exchange(woke_guardian_, true)) return;
  context_.console.say("the guardian of the workers (pid " + std::to_string(guardian_->pid()) +
                       ") was stopped by somebody; it goes on");
}

void Attempt::heed_other_nodes() {
  auto& node = *context_.node;
  node.advance();
  if (stopping_ || (!node.stop() && !node.finish())) return;
  attempt_.reason = node.stop() ? node.stop()->reason : node.finish()->reason;
  attempt_.code = node.stop() ? node.stop()->code : node.finish()->code;
  // Where all launchers write to one terminal, the one with the failure tells it.
  if (!context_.lifeline) context_.console.say("stopping the workers of this node: " + attempt_.reason);
  stop(AttemptResult::stopped_elsewhere, SIGTERM);
}

void Attempt::heed_lifeline() {
  context_.lifeline->advance();
  if (!context_.lifeline->is_gone() || attempt_.signal) return;
  attempt_.signal = SIGTERM;
  attempt_.code = 128 + SIGTERM;
  attempt_.reason = context_.lifeline->why();
  stop(AttemptResult::signalled, SIGTERM);
  attempt_.end = AttemptResult::signalled;
  if (context_.node) context_.node->leave(SIGTERM);
}

void Attempt::stop(AttemptResult::End end, int signal) {
  if (stopping_) return;
  stopping_ = true;
  dump_.reset();
  attempt_.end = end;
  require_all_at_.reset();
  asked_at_ = nanoseconds(Clock::now());
  kill_at_ = Clock::now() + in_clock(context_.options.grace_seconds);
  guardian_->signal_workers(signal, true);
}

void Attempt::kill_now() {
  if (killed_) return;
  killed_ = true;
  guardian_->kill_all();
  give_up_at_ = Clock::now() + kKillLimit;
}

void Attempt::check_deadlines() {
  auto now = Clock::now();
  if (require_all_at_ && now >= *require_all_at_ && !stopping_) {
    std::string running;
    for (const auto& worker : attempt_.workers)
      if (worker.state == WorkerEnd::running) running += (running.empty() ? "" : ", ") + std::to_string(worker.rank);
    require_all_at_.reset();
    attempt_.reason = "rank 0 ended well, but after --require-all " +
                      std::to_string(static_cast<int>(context_.options.require_all_seconds)) +
                      " s these ranks still ran: " + running;
    attempt_.code = kRequireAll;
    stop(AttemptResult::not_all_ended, SIGTERM);
  }
  if (!stopping_) check_hangs(now);
  // Nothing more comes because we do not read it: a slow reader is waited for, unless we were told to end.
  if (drain_until_ && now >= *drain_until_ && attempt_.signal == 0 && is_held_back()) drain_until_ = now + kDrainLimit;
  if (kill_at_ && now >= *kill_at_ && !drain_until_) kill_now();
  if (kill_at_ && now >= *kill_at_) kill_at_ = now + std::chrono::hours(24);
  if (give_up_at_ && now >= *give_up_at_) {
    // The guardian does not answer: somebody may have stopped it.
    give_up_at_.reset();
    if (!drain_until_) kill(guardian_->pid(), SIGKILL);
  }
}

void Attempt::lose_guardian(int status) {
  int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  kill_descendants(kKillLimit);
  for (auto& worker : attempt_.workers)
    if (worker.state == WorkerEnd::running) {
      worker.state = WorkerEnd::stopped;
      worker.code = 128 + SIGKILL;
      worker.signal = SIGKILL;
    }
  // Its end was our doing when we had to give up on it.
  if (killed_ || attempt_.end == AttemptResult::cannot_start) return;
  attempt_.end = AttemptResult::guardian_lost;
  attempt_.first = -1;
  attempt_.code = signal ? 128 + signal : WEXITSTATUS(status) ? WEXITSTATUS(status) : 128 + SIGKILL;
  attempt_.reason = "the guardian of the workers (pid " + std::to_string(guardian_->pid()) + ") " +
                    (signal ? "was killed by " + signal_name(signal) : "ended") + ", so all of them were killed";
}

void Attempt::hold_back_or_go_on() {
  for (std::size_t i = 0; i < workers_.size(); ++i)
    for (int stream = 0; stream < 2; ++stream) {
      auto& from = stream == 0 ? *workers_[i].output : *workers_[i].error;
      bool& hears = workers_[i].hears[stream];
      bool should = !from.must_wait();
      if (!from.is_open() || hears == should) continue;
      hears = should;
      if (should)
        watch(from.fd(), stream == 0 ? Source::output : Source::error, i);
      else
        epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, from.fd(), nullptr);
    }
}

void Attempt::watch_console() {
  Sink* sinks[] = {&context_.console.out(), &context_.console.error()};
  for (int i = 0; i < 2; ++i) {
    bool should = !sinks[i]->is_empty() && sinks[i]->can_poll() && (i == 0 || sinks[1] != sinks[0]);
    if (should == waits_for_console_[i]) continue;
    waits_for_console_[i] = should;
    if (should)
      watch(sinks[i]->fd(), Source::console);
    else
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, sinks[i]->fd(), nullptr);
    // A reader that takes what it was given shows that it lives.
    if (drain_until_ && attempt_.signal == 0) drain_until_ = Clock::now() + kDrainLimit;
  }
}

bool Attempt::is_held_back() const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const Worker& worker) { return worker.output->must_wait() || worker.error->must_wait(); });
}

bool Attempt::is_over() const {
  if (!drain_until_) return false;
  bool open = std::any_of(workers_.begin(), workers_.end(),
                          [](const Worker& worker) { return worker.output->is_open() || worker.error->is_open(); });
  if (!open) return true;
  return Clock::now() >= *drain_until_;
}

void Attempt::conclude() {
  attempt_.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    auto& end = attempt_.workers[i];
    workers_[i].output->finish();
    workers_[i].error->finish();
    const auto& lines = workers_[i].error->last_lines();
    end.last_lines.assign(lines.begin(), lines.end());
    end.step = workers_[i].heartbeats.step();
    end.section = workers_[i].heartbeats.section();
    end.error = read_error_file(end.error_path);
    attempt_.forbids_retry |= workers_[i].heartbeats.forbids_retry();
    if (attempt_.why_no_retry.empty()) attempt_.why_no_retry = workers_[i].heartbeats.why_no_retry();
  }
  attempt_.forbids_retry |= attempt_.code == kDoNotRetry;
}

}  // namespace fabric::run
