// What an attempt makes of heartbeats: which worker hangs, and where it does.
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <tuple>

#include "launcher/os/exit_codes.h"
#include "launcher/run/attempt.h"

namespace fabric::run {
namespace {

/// Those that wait for the one that hangs fall silent with it, some of them a moment before.
constexpr std::chrono::milliseconds kHangDelay{100};

}  // namespace

void Attempt::read_heartbeat(std::size_t index) {
  char buffer[4096];
  auto& worker = workers_[index];
  ssize_t size = recv(worker.heartbeat_socket.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  if (size > 0) return worker.heartbeats.feed({buffer, static_cast<std::size_t>(size)}, Clock::now());
  if (size < 0 && errno == EAGAIN) return;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, worker.heartbeat_socket.get(), nullptr);
  worker.heartbeat_socket.reset();
}

std::optional<Attempt::Clock::time_point> Attempt::next_look_for_hangs() const {
  if (dump_) return dump_->deadline();
  if (name_hang_at_) return name_hang_at_;
  std::optional<Clock::time_point> first;
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    auto time = workers_[i].heartbeats.deadline();
    if (attempt_.workers[i].state == WorkerEnd::running && time && (!first || *time < *first)) first = time;
  }
  return first;
}

void Attempt::check_hangs(Clock::time_point now) {
  if (dump_) {
    if (now >= dump_->deadline()) end_as_hung();
    return;
  }
  std::vector<std::size_t> hung;
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (attempt_.workers[i].state != WorkerEnd::running) continue;
    auto hang = workers_[i].heartbeats.hang(now);
    attempt_.workers[i].hang = hang.value_or("");
    if (hang) hung.push_back(i);
  }
  if (hung.empty()) return name_hang_at_.reset();
  if (!name_hang_at_) name_hang_at_ = now + kHangDelay;
  if (now >= *name_hang_at_) begin_dump(std::move(hung));
}

void Attempt::begin_dump(std::vector<std::size_t> hung) {
  // One that hangs makes the others wait for it. It is the one that has come least far and does not wait in a barrier.
  auto order = [&](std::size_t i) {
    const auto& beats = workers_[i].heartbeats;
    return std::tuple(beats.section().starts_with("barrier"), beats.step(), *beats.last_beat());
  };
  std::sort(hung.begin(), hung.end(), [&](std::size_t a, std::size_t b) { return order(a) < order(b); });
  hung_ = std::move(hung);
  std::vector<pid_t> pids;
  for (std::size_t i : hung_) pids.push_back(attempt_.workers[i].pid);
  try {
    dump_.emplace(pids);
  } catch (const std::exception&) {
    return end_as_hung();  // no descriptor or process to be had; the hang is as true without stacks
  }
  watch(dump_->fd(), Source::stacks);
}

void Attempt::end_as_hung() {
  if (dump_) {
    auto stacks = dump_->take();
    for (std::size_t k = 0; k < stacks.size(); ++k) attempt_.workers[hung_[k]].stacks = std::move(stacks[k]);
  }
  attempt_.first = static_cast<int>(hung_.front());
  attempt_.code = kHang;
  stop(AttemptResult::hung, SIGTERM);
}

}  // namespace fabric::run
