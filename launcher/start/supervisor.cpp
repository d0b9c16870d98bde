#include "launcher/start/supervisor.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "fabric/base/terminal_row_internal.h"
#include "launcher/os/signal_name.h"
#include "launcher/os/visible.h"

namespace fabric {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kReadAtOnce = 64 * 1024;
/// A child whose lines cannot be written as fast as they come has to wait.
constexpr std::size_t kOutputLimit = 1024 * 1024;
/// As much as a pipe takes at once; writing no more never blocks when poll said so.
constexpr std::size_t kWriteAtOnce = 4096;

int milliseconds_until(Supervisor::Clock::time_point deadline) {
  auto left = std::chrono::ceil<milliseconds>(deadline - Supervisor::Clock::now()).count();
  return static_cast<int>(std::clamp<long long>(left, 0, 1 << 30));
}

}  // namespace

std::string RankExit::what() const {
  return "local rank " + std::to_string(rank.local_rank) + " (rank " + std::to_string(rank.rank) + ", pid " +
         std::to_string(pid) + ") " + end_in_words(code, signal);
}

std::string RankExit::tail() const {
  if (last_lines.empty()) return "It wrote nothing to stderr.";
  std::string text = "Its last lines of stderr:";
  for (const auto& line : last_lines) text += "\n    " + visible(line);
  return text;
}

void Supervisor::add(const RankInfo& rank, Child child) {
  Watched watched;
  watched.rank = rank;
  watched.prefix = "[rank " + std::to_string(rank.rank) + "] ";
  watched.child = std::move(child);
  watched_.push_back(std::move(watched));
}

bool Supervisor::all_ended() const {
  return std::all_of(watched_.begin(), watched_.end(), [](const Watched& watched) { return watched.ended; });
}

std::vector<int> Supervisor::running() const {
  std::vector<int> ranks;
  for (const auto& watched : watched_)
    if (!watched.ended) ranks.push_back(watched.rank.local_rank);
  return ranks;
}

void Supervisor::poll(int wakeup, std::optional<Clock::time_point> deadline) {
  std::vector<pollfd> entries{{wakeup, POLLIN, 0}, {output_.empty() ? -1 : 2, POLLOUT, 0}};
  bool room = output_.size() < kOutputLimit;
  for (const auto& watched : watched_) {
    bool live = !watched.ended;
    entries.push_back({live ? watched.child.process.get() : -1, POLLIN, 0});
    entries.push_back({live && room ? watched.child.error.get() : -1, POLLIN, 0});
    entries.push_back({live ? watched.child.result.get() : -1, POLLIN, 0});
  }
  if (::poll(entries.data(), entries.size(), deadline ? milliseconds_until(*deadline) : -1) <= 0) return;
  for (std::size_t i = 0; i < watched_.size(); ++i) {
    const pollfd* entry = &entries[2 + 3 * i];
    if (entry[1].revents) read_error(watched_[i], kReadAtOnce);
    if (entry[2].revents) read_result(watched_[i]);
    if (entry[0].revents) reap(watched_[i]);
  }
  if (!output_.empty()) write_some();
}

void Supervisor::read_error(Watched& watched, std::size_t limit) {
  char buffer[kReadAtOnce];
  for (std::size_t total = 0; total < limit && watched.child.error;) {
    ssize_t size = read(watched.child.error.get(), buffer, sizeof buffer);
    if (size > 0)
      watched.lines.feed({buffer, static_cast<std::size_t>(size)}, watched.prefix, output_), total += size;
    else if (size == 0)
      watched.child.error.reset();
    else
      return;
  }
}

void Supervisor::read_result(Watched& watched) {
  char buffer[kReadAtOnce];
  while (watched.child.result) {
    ssize_t size = read(watched.child.result.get(), buffer, sizeof buffer);
    if (size > 0)
      watched.result.append(buffer, size);
    else if (size == 0)
      watched.child.result.reset();
    else
      return;
  }
}

void Supervisor::reap(Watched& watched) {
  // Before the child is reaped, so that its number still means its session and not somebody else's.
  kill(-watched.child.pid, SIGKILL);
  int status = 0;
  if (waitpid(watched.child.pid, &status, 0) != watched.child.pid) status = 255 << 8;
  read_error(watched, kOutputLimit);
  read_result(watched);
  watched.lines.finish(watched.prefix, output_);
  watched.ended = true;
  RankExit exit{.rank = watched.rank, .pid = watched.child.pid};
  exit.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  exit.code = exit.signal ? 128 + exit.signal : WEXITSTATUS(status);
  exit.last_lines.assign(watched.lines.last().begin(), watched.lines.last().end());
  watched.child = Child{};
  if (exit.code == 0) return;
  if (stopping_ && stopped_code_ == 0) stopped_code_ = exit.code;
  if (!stopping_ && !failure_) failure_ = std::move(exit);
}

void Supervisor::signal_all(int number) {
  for (const auto& watched : watched_) {
    if (watched.ended) continue;
    // A child that was just forked may not lead its session yet.
    if (kill(-watched.child.pid, number) != 0) kill(watched.child.pid, number);
  }
}

void Supervisor::stop() {
  stopping_ = true;
  constexpr milliseconds kKillLimit{1000};
  for (auto [number, limit] : {std::pair(SIGTERM, milliseconds(kStopGrace)), std::pair(SIGKILL, kKillLimit)}) {
    if (all_ended()) return;
    signal_all(number);
    for (auto deadline = Clock::now() + limit; !all_ended() && Clock::now() < deadline;) poll(-1, deadline);
  }
}

void Supervisor::write_some() {
  std::string_view next(output_.data() + written_, std::min(output_.size() - written_, kWriteAtOnce));
  auto line_end = next.rfind('\n');
  if (line_end != std::string_view::npos) next = next.substr(0, line_end + 1);
  // A bar that rank 0 draws on the same terminal is not torn by the lines of others.
  std::string erase = progress_row_is_drawn && isatty(2) == 1 ? kEraseRow : "";
  auto bytes = erase + std::string(next);
  ssize_t size = write(2, bytes.data(), bytes.size());
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size >= 0) size = std::max<ssize_t>(0, size - static_cast<ssize_t>(erase.size()));
  written_ = size < 0 ? output_.size() : written_ + size;
  if (written_ < output_.size()) return;
  output_.clear();
  written_ = 0;
}

void Supervisor::flush(milliseconds limit) {
  for (auto deadline = Clock::now() + limit; !output_.empty();) {
    pollfd entry{2, POLLOUT, 0};
    if (::poll(&entry, 1, milliseconds_until(deadline)) <= 0) return;
    write_some();
  }
}

void Supervisor::say(const std::string& text) {
  output_ += text + "\n";
  flush(milliseconds(200));
}

}  // namespace fabric
