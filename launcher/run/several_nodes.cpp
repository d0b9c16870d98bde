#include "launcher/run/several_nodes.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>

#include "launcher/os/signal_name.h"
#include "launcher/run/hosts/lifeline.h"

namespace fabric::run {
namespace {

constexpr std::chrono::seconds kLinger{3}, kShortLinger{1};
constexpr std::chrono::milliseconds kSignalSpread{500};
constexpr std::size_t kLongestReport = 16 * 1024;

class SeveralNodes {
 public:
  SeveralNodes(Runner& runner, const Job& job, const rendezvous::NodeSetup& setup)
      : runner_(runner), job_(job), node_(setup, [this](const std::string& text) { runner_.console().say(text); }) {}

  int run() {
    for (;;) {
      auto start = wait();
      if (signal_) return leave_while_waiting();
      if (!start) return conclude(*node_.finish());
      if (failed_here_) runner_.say_failure();
      take_place(*start);
      const auto& attempt = runner_.run(job_, start->roster.round, &node_);
      if (attempt.signal) {
        if (runner_.lifeline() && runner_.lifeline()->has_brought(attempt.signal)) let_others_hear();
        node_.leave(attempt.signal);
        node_.linger(kShortLinger);
        return runner_.fail(attempt.code);
      }
      node_.report(summary(attempt));
      failed_here_ = attempt.is_failure();
    }
  }

 private:
  /// Until a round starts; nothing when the job is over or a signal came.
  std::optional<rendezvous::Start> wait() {
    for (;;) {
      node_.advance();
      if (auto start = node_.take_start()) return start;
      if (node_.finish()) return std::nullopt;
      if (is_cut_off()) return std::nullopt;
      auto* lifeline = runner_.lifeline();
      // poll passes over a descriptor of -1.
      pollfd entries[] = {
          {node_.fd(), POLLIN, 0}, {runner_.signals(), POLLIN, 0}, {lifeline ? lifeline->fd() : -1, POLLIN, 0}};
      runner_.console().write_some();
      poll(entries, 3, 1000);
      signalfd_siginfo info;
      while (read(runner_.signals(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
        const auto& stop_on = runner_.options().stop_on;
        int number = static_cast<int>(info.ssi_signo);
        if (std::find(stop_on.begin(), stop_on.end(), number) == stop_on.end()) continue;
        signal_ = number;
        return std::nullopt;
      }
    }
  }

  /// The same signal is on its way to every host, and comes to some of them later.
  void let_others_hear() {
    auto end = std::chrono::steady_clock::now() + kSignalSpread;
    for (node_.advance(); std::chrono::steady_clock::now() < end && !node_.finish(); node_.advance()) {
      pollfd entry{node_.fd(), POLLIN, 0};
      poll(&entry, 1, static_cast<int>(kSignalSpread.count()) / 10);
    }
  }

  /// From the launcher elsewhere that started this one.
  bool is_cut_off() {
    auto* lifeline = runner_.lifeline();
    if (!lifeline) return false;
    lifeline->advance();
    if (lifeline->is_gone()) signal_ = SIGTERM;
    return lifeline->is_gone();
  }

  int leave_while_waiting() {
    node_.leave(signal_);
    node_.linger(kShortLinger);
    runner_.console().say("the launcher got " + signal_name(signal_) + " while no workers ran");
    return runner_.finish(128 + signal_, true);
  }

  void take_place(const rendezvous::Start& start) {
    const auto& nodes = start.roster.nodes;
    job_.id = start.roster.run_id;
    job_.nodes = static_cast<int>(nodes.size());
    job_.max_restarts = start.max_restarts;
    job_.master_addr = start.master_addr;
    job_.master_port = start.master_port;
    job_.world_size = 0;
    for (int i = 0; i < job_.nodes; ++i) {
      const auto& node = nodes[static_cast<std::size_t>(i)];
      if (node.id == node_.own().id) job_.node = i, job_.first_rank = job_.world_size;
      job_.world_size += node.local_size;
    }
  }

  rendezvous::Ended summary(const AttemptResult& attempt) const {
    rendezvous::Ended ended{.round = attempt.number, .succeeded = attempt.end == AttemptResult::succeeded};
    ended.failed = attempt.is_failure();
    ended.can_retry = attempt.can_retry();
    ended.forbids_retry = attempt.forbids_retry && ended.failed;
    ended.code = attempt.code;
    ended.step = attempt.best_step();
    if (!ended.failed) return ended;
    ended.cause = cause_in_words(job_, attempt).substr(0, kLongestReport);
    ended.report = report_text(job_, attempt, "").substr(0, kLongestReport);
    return ended;
  }

  int conclude(const rendezvous::Finish& end) {
    node_.linger(kLinger);
    if (end.code == 0 && failed_here_) return runner_.fail(runner_.attempts().back().code);
    if (end.code == 0) return runner_.finish(0);
    if (end.reporter_id == node_.own().id && failed_here_) return runner_.fail(end.code, end.reason);
    // Launchers of a list of hosts write to one terminal.
    if (runner_.lifeline() && !end.reporter_id.empty()) return runner_.finish(end.code);
    // One node besides that of the failure tells all; the first is where people look.
    if (job_.node == 0 && !end.report.empty())
      runner_.console().say_lines(end.report);
    else if (!end.cause.empty())
      runner_.console().say("the job failed: " + end.cause);
    if (!end.reason.empty()) runner_.console().say("the job ended: " + end.reason);
    return runner_.finish(end.code);
  }

  Runner& runner_;
  Job job_;
  rendezvous::Node node_;
  bool failed_here_ = false;
  int signal_ = 0;
};

}  // namespace

int run_on_several_nodes(Runner& runner, Job job, const rendezvous::NodeSetup& setup) {
  return SeveralNodes(runner, job, setup).run();
}

}  // namespace fabric::run
