#include "launcher/run/runner.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>

#include "launcher/run/hosts/lifeline.h"
#include "launcher/run/machine.h"

namespace fabric::run {
namespace {

constexpr std::chrono::seconds kFlushLimit{1};
constexpr std::chrono::milliseconds kLookForSignals{200};
constexpr std::chrono::hours kPatience{24};

/// Lifts the soft limit of descriptors as far as is needed; the workers get the old one. Throws LaunchError.
rlimit make_room_for_descriptors(int needed) {
  rlimit before{}, wanted{};
  getrlimit(RLIMIT_NOFILE, &before);
  auto count = static_cast<rlim_t>(needed);
  if (before.rlim_cur >= count) return before;
  wanted = before;
  wanted.rlim_cur = std::min(count, before.rlim_max);
  setrlimit(RLIMIT_NOFILE, &wanted);
  if (wanted.rlim_cur < count)
    throw LaunchError("the limit of open files is " + std::to_string(before.rlim_max) + ", and these workers need " +
                      std::to_string(needed) + "; raise it with ulimit -n " + std::to_string(needed));
  return before;
}

/// One digit, which is all that some shells take, and none that the workers inherit from whoever started us.
int free_number() {
  for (int number = 3; number < 10; ++number) {
    int flags = fcntl(number, F_GETFD);
    if (flags < 0 || (flags & FD_CLOEXEC)) return number;
  }
  return 10;
}

}  // namespace

Runner::Runner(const Options& options, const Job& job, const EnvReader& env, std::vector<int> ignored,
               Lifeline* lifeline)
    : options_(options),
      lifeline_(lifeline),
      ignored_(std::move(ignored)),
      program_(find_program(options, env.get_or("PATH", "/usr/local/bin:/usr/bin:/bin"))),
      job_(job),
      files_(make_room_for_descriptors(descriptors_needed(job.local_size, options.max_nodes))),
      folders_(options, job),
      outer_(outer_variables()),
      own_error_file_(env.get_or("TORCHELASTIC_ERROR_FILE", "")),
      prefix_template_(env.get_or("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "")),
      processors_(count_processors()),
      heartbeat_number_(free_number()) {
  if (job.local_size > 1 && !env.has("OMP_NUM_THREADS"))
    console_.say(std::to_string(job.local_size) + " workers with OMP_NUM_THREADS=" +
                 common_variables(job, options, outer_, processors_)["OMP_NUM_THREADS"] +
                 " each; set it to change that");
  take_signals();
}

const AttemptResult& Runner::run(const Job& job, int number, rendezvous::Node* node) {
  job_ = job;
  variables_ = common_variables(job_, options_, outer_, processors_);
  Attempt round(context(node), number);
  return attempts_.emplace_back(round.run());
}

AttemptContext Runner::context(rendezvous::Node* node) {
  GuardianOptions guardian{.cgroup = cgroup_.folder(),
                           .pid_namespace = options_.pid_namespace,
                           .mask = mask_,
                           .files = files_,
                           .ignored = ignored_,
                           .stop_on = options_.stop_on,
                           .forward = options_.forward,
                           .temporary_folder = folders_.is_temporary() ? folders_.root() : ""};
  return {options_,         job_,           program_,        variables_,        folders_, console_, guardian,
          prefix_template_, signals_.get(), children_.get(), heartbeat_number_, node,     lifeline_};
}

void Runner::take_signals() {
  // nohup: a hang-up that was ignored before us stays so, for the workers too.
  struct sigaction hang_up;
  if (sigaction(SIGHUP, nullptr, &hang_up) == 0 && hang_up.sa_handler == SIG_IGN) std::erase(options_.stop_on, SIGHUP);
  sigset_t handled;
  sigemptyset(&handled);
  for (int number : options_.stop_on) sigaddset(&handled, number);
  for (int number : options_.forward) sigaddset(&handled, number);
  sigprocmask(SIG_BLOCK, &handled, &mask_);
  signals_ = above_stdio(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK), "signals");
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  children_ = above_stdio(signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK), "signals");
}

void Runner::say_failure() {
  console_.say_lines(report_text(job_, attempts_.back(), ""));
  console_.flush(kFlushLimit);
}

int Runner::fail(int code, const std::string& reason) {
  const auto& last = attempts_.back();
  if (last.end == AttemptResult::signalled)
    console_.say(last.reason + "; the workers were stopped");
  else
    console_.say_lines(report_text(job_, last, kept_logs()));
  if (last.end != AttemptResult::signalled && attempts_.size() > 1) say_attempts();
  if (!reason.empty() && !last.is_of_settings()) console_.say(reason);
  if (last.first >= 0) {
    const auto& first = last.workers[static_cast<std::size_t>(last.first)];
    hand_up_error_file(first.error_path, own_error_file_, first.code);
  }
  return finish(code);
}

void Runner::say_attempts() {
  for (const auto& attempt : attempts_)
    console_.say("attempt " + std::to_string(attempt.number) + ": " + cause_in_words(job_, attempt, false));
}

std::string Runner::kept_logs() const {
  bool kept = !options_.log_dir.empty() || options_.redirects != "0" || options_.tee != "0";
  return kept ? folders_.root() : "";
}

int Runner::finish(int code, bool in_haste) {
  was_told_to_end_ |= in_haste;
  if (!options_.report.empty()) {
    auto problem = write_report(options_.report, report_tree(job_, attempts_, code, kept_logs()));
    if (!problem.empty()) console_.say("warning: " + problem);
  }
  // A reader that is merely slow gets all of it, unless we were or are told to end.
  using Clock = std::chrono::steady_clock;
  in_haste = was_told_to_end_ || (!attempts_.empty() && attempts_.back().signal != 0);
  for (auto end = Clock::now() + kPatience; !in_haste && !console_.is_empty() && Clock::now() < end;) {
    console_.flush(kLookForSignals);
    in_haste = is_told_to_end();
  }
  console_.flush(kFlushLimit);
  return code;
}

// The signals are blocked, so that nothing else would end the wait.
bool Runner::is_told_to_end() {
  if (lifeline_) lifeline_->advance();
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info))
    was_told_to_end_ |= std::find(options_.stop_on.begin(), options_.stop_on.end(), static_cast<int>(info.ssi_signo)) !=
                        options_.stop_on.end();
  return was_told_to_end_ || (lifeline_ && lifeline_->is_gone());
}

}  // namespace fabric::run
