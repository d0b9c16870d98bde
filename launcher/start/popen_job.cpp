#include "launcher/start/popen_job.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "launcher/os/signal_mask.h"
#include "launcher/start/history.h"

namespace fabric {
namespace {

using std::chrono::milliseconds;

/// A child's death breaks connections a moment before it can be seen as dead; on a busy machine that is long.
constexpr milliseconds kSettle{200};
constexpr milliseconds kOutputGrace{5000};
/// Stopping children takes at most half a second and a second more; this is far longer.
constexpr std::chrono::seconds kWatcherLimit{10};

// Another thread may hold a stream's lock for ever, so the flush gets a thread of its own and little time.
void flush_stdio() {
  auto done = std::make_shared<std::promise<void>>();
  auto flushed = done->get_future();
  try {
    std::thread([done] {
      std::fflush(nullptr);
      done->set_value();
    }).detach();
    flushed.wait_for(milliseconds(100));
  } catch (const std::system_error&) {
    return;
  }
}

std::string list(const std::vector<int>& ranks) {
  std::string text;
  for (int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

}  // namespace

PopenJob::PopenJob(const Launcher::Config& config, const EnvReader& env, Start start)
    : config_(config), plan_(config, env), owner_(getpid()), start_(start), wakeup_(make_wakeup()) {
  if (start_ == Start::copy && !start_copies()) return;
  std::promise<void> started;
  auto result = started.get_future();
  {
    BlockSignals blocked;
    std::thread(&PopenJob::run, this, blocked.before(), std::move(started)).detach();
  }
  result.get();
}

bool PopenJob::start_copies() {
  try {
    for (int local_rank = 1; local_rank < config_.num_processes; ++local_rank) {
      auto child = copy_process();
      if (!child) {
        local_rank_ = local_rank;
        copies_.clear();
        return false;
      }
      copies_.push_back(std::move(*child));
    }
  } catch (...) {
    Supervisor supervisor;
    for (std::size_t i = 0; i < copies_.size(); ++i)
      supervisor.add(plan_.rank(static_cast<int>(i) + 1), std::move(copies_[i]));
    supervisor.stop();
    throw;
  }
  return true;
}

void PopenJob::run(sigset_t mask, std::promise<void> started) {
  pthread_setname_np(pthread_self(), "fabric_watch");
  Supervisor supervisor;
  try {
    start_children(supervisor, mask);
  } catch (...) {
    supervisor.stop();
    started.set_exception(std::current_exception());
    return;
  }
  started.set_value();
  watch(supervisor);
  supervisor.flush(kOutputGrace);
  std::lock_guard lock(mutex_);
  code_ = supervisor.stopped_code();
  ended_ = true;
  changed_.notify_all();
}

void PopenJob::start_children(Supervisor& supervisor, sigset_t mask) {
  if (start_ == Start::copy) {
    for (std::size_t i = 0; i < copies_.size(); ++i)
      supervisor.add(plan_.rank(static_cast<int>(i) + 1), std::move(copies_[i]));
    copies_.clear();
    return;
  }
  auto command = own_command();
  ChildOptions options{.mask = mask, .kept = {}};
  auto outcomes = CallHistory::of_this_process().hand_over(command, options, -1);
  command.variables["OMP_NUM_THREADS"] = plan_.threads();
  for (int local_rank = 1; local_rank < config_.num_processes; ++local_rank) {
    for (const auto& [name, value] : plan_.variables(local_rank)) command.variables[name] = value;
    supervisor.add(plan_.rank(local_rank), start_program(command, options));
  }
}

void PopenJob::watch(Supervisor& supervisor) {
  while (!supervisor.all_ended()) {
    auto until = deadline();
    supervisor.poll(wakeup_.get(), until);
    std::uint64_t count;
    [[maybe_unused]] auto drained = read(wakeup_.get(), &count, sizeof count);
    if (supervisor.failure()) fail(supervisor);
    until = deadline();
    if (!until || Clock::now() < *until) continue;
    supervisor.say("[fabric] error: rank 0 has ended; stopping local ranks " + list(supervisor.running()));
    supervisor.stop();
    if (!supervisor.all_ended()) supervisor.say("[fabric] error: some ranks cannot be killed; giving up");
    return;
  }
}

void PopenJob::fail(Supervisor& supervisor) {
  {
    std::lock_guard lock(mutex_);
    failing_ = true;
    changed_.notify_all();
  }
  const auto& failure = *supervisor.failure();
  supervisor.say("[fabric] error: " + failure.what() + "; ending the job with exit code " +
                 std::to_string(failure.code) + ". " + failure.tail());
  supervisor.flush(milliseconds(100));
  supervisor.stop();
  supervisor.flush(milliseconds(100));
  flush_stdio();
  _exit(failure.code);
}

std::optional<PopenJob::Clock::time_point> PopenJob::deadline() {
  std::lock_guard lock(mutex_);
  return deadline_;
}

void PopenJob::stop_at(Clock::time_point deadline) {
  {
    std::lock_guard lock(mutex_);
    deadline_ = deadline;
  }
  std::uint64_t one = 1;
  [[maybe_unused]] auto woken = write(wakeup_.get(), &one, sizeof one);
}

void PopenJob::wait_until_ended() {
  std::unique_lock lock(mutex_);
  auto limit = deadline_.value_or(Clock::now()) + kWatcherLimit;
  changed_.wait_until(lock, limit, [&] { return ended_; });
}

int PopenJob::join() {
  // Longer than a century is for ever, and would overflow the clock.
  constexpr double kLongest = 3e9;
  auto grace = std::chrono::duration<double>(std::min(config_.grace_seconds, kLongest));
  stop_at(Clock::now() + std::chrono::duration_cast<Clock::duration>(grace));
  wait_until_ended();
  std::lock_guard lock(mutex_);
  return code_;
}

bool PopenJob::is_failing() {
  std::unique_lock lock(mutex_);
  if (ended_) return false;
  return changed_.wait_for(lock, kSettle, [&] { return failing_ || ended_; }) && failing_;
}

void PopenJob::abandon() {
  if (!is_failing()) stop_at(Clock::now());
  wait_until_ended();
}

}  // namespace fabric
