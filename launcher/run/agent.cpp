#include "launcher/run/agent.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "launcher/run/job.h"
#include "launcher/run/machine.h"
#include "launcher/run/round.h"

namespace fabric::run {
namespace {

constexpr int kRestartsWithoutProgress = 3;
constexpr std::chrono::seconds kFlushLimit{1};
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

class Agent {
 public:
  Agent(const Options& options, const EnvReader& env)
      : program_(find_program(options, env.get_or("PATH", "/usr/local/bin:/usr/bin:/bin"))),
        planned_(plan_job(options, env)),
        options_(options),
        files_(make_room_for_descriptors(descriptors_needed(planned_.job.local_size))),
        folders_(options, planned_.job),
        variables_(
            common_variables(planned_.job, options, outer_variables(), static_cast<int>(usable_processors().size()))),
        own_error_file_(env.get_or("TORCHELASTIC_ERROR_FILE", "")),
        prefix_template_(env.get_or("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "")) {
    if (job().local_size > 1 && !env.has("OMP_NUM_THREADS"))
      console_.say(std::to_string(job().local_size) + " workers with OMP_NUM_THREADS=" + variables_["OMP_NUM_THREADS"] +
                   " each; set it to change that");
    take_signals();
  }

  int run() {
    for (;;) {
      Round round(context(), static_cast<int>(attempts_.size()));
      attempts_.push_back(round.run());
      const auto& last = attempts_.back();
      if (last.end == Attempt::succeeded) return finish(0);
      bool can_retry = last.signal == 0 && (last.end == Attempt::failed || last.end == Attempt::hung);
      if (!can_retry) return fail(last.code);
      if (last.forbids_retry) return fail(last.code, "the worker asked not to be started again");
      if (!made_progress(last))
        return fail(kNoProgress, std::to_string(kRestartsWithoutProgress) +
                                     " restarts in a row got no further than step " + std::to_string(best_step_));
      if (static_cast<int>(attempts_.size()) > options_.max_restarts) return fail(last.code);
      console_.error().buffer() += report_text(job(), last, "");
      console_.say("starting all workers again: restart " + std::to_string(attempts_.size()) + " of at most " +
                   std::to_string(options_.max_restarts));
      console_.flush(kFlushLimit);
    }
  }

 private:
  const Job& job() const { return planned_.job; }

  RoundContext context() {
    GuardianOptions guardian{.cgroup = cgroup_.folder(),
                             .pid_namespace = options_.pid_namespace,
                             .mask = mask_,
                             .files = files_,
                             .stop_on = options_.stop_on,
                             .temporary_folder = folders_.is_temporary() ? folders_.root() : ""};
    return {options_, job(),    program_,         variables_,     folders_,
            console_, guardian, prefix_template_, signals_.get(), heartbeat_number_};
  }

  void take_signals() {
    // nohup: a hang-up that was ignored before us stays so, for the workers too.
    struct sigaction hang_up;
    if (sigaction(SIGHUP, nullptr, &hang_up) == 0 && hang_up.sa_handler == SIG_IGN)
      std::erase(options_.stop_on, SIGHUP);
    sigset_t handled;
    sigemptyset(&handled);
    for (int number : options_.stop_on) sigaddset(&handled, number);
    for (int number : options_.forward) sigaddset(&handled, number);
    sigprocmask(SIG_BLOCK, &handled, &mask_);
    signal(SIGPIPE, SIG_IGN);
    signals_ = above_stdio(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK), "signals");
  }

  // Known only of programs that report steps.
  bool made_progress(const Attempt& attempt) {
    long long step = -1;
    for (const auto& worker : attempt.workers) step = std::max(step, worker.step);
    if (step > best_step_)
      stale_ = 0;
    else if (best_step_ >= 0)
      ++stale_;
    best_step_ = std::max(best_step_, step);
    return stale_ < kRestartsWithoutProgress;
  }

  int fail(int code, const std::string& reason = "") {
    const auto& last = attempts_.back();
    auto logs = kept_logs();
    if (last.end == Attempt::signalled)
      console_.say(last.reason + "; the workers were stopped");
    else
      console_.error().buffer() += report_text(job(), last, logs);
    if (last.end != Attempt::signalled && attempts_.size() > 1) say_attempts();
    if (!reason.empty()) console_.say(reason);
    if (last.first >= 0) {
      const auto& first = last.workers[static_cast<std::size_t>(last.first)];
      hand_up_error_file(first.error_path, own_error_file_, first.code);
    }
    return finish(code);
  }

  void say_attempts() {
    for (const auto& attempt : attempts_) {
      auto text = "attempt " + std::to_string(attempt.number) + ": ";
      if (attempt.first < 0)
        text += attempt.reason;
      else {
        const auto& worker = attempt.workers[static_cast<std::size_t>(attempt.first)];
        text += "rank " + std::to_string(worker.rank) + " " +
                (attempt.end == Attempt::hung ? worker.hang : end_in_words(worker));
      }
      console_.say(text);
    }
  }

  std::string kept_logs() const {
    bool kept = !options_.log_dir.empty() || options_.redirects != "0" || options_.tee != "0";
    return kept ? folders_.root() : "";
  }

  int finish(int code) {
    if (!options_.report.empty()) {
      auto problem = write_report(options_.report, report_tree(job(), attempts_, code, kept_logs()));
      if (!problem.empty()) console_.say("warning: " + problem);
    }
    // A reader that is merely slow gets all of it, unless we were told to end.
    bool in_haste = attempts_.back().signal != 0;
    console_.flush(in_haste ? std::chrono::milliseconds(kFlushLimit) : std::chrono::milliseconds(kPatience));
    return code;
  }

  Program program_;
  PlannedJob planned_;
  Options options_;
  rlimit files_;
  LogFolders folders_;
  Variables variables_;
  std::string own_error_file_, prefix_template_;
  Console console_;
  Cgroup cgroup_;
  Descriptor signals_;
  sigset_t mask_;
  std::vector<Attempt> attempts_;
  long long best_step_ = -1;
  int stale_ = 0;
  int heartbeat_number_ = free_number();
};

int complain(const std::string& text, int code) {
  std::fprintf(stderr, "fabric: %s\n", text.c_str());
  return code;
}

}  // namespace

int run_job(const Options& given, const EnvReader& env) {
  try {
    return Agent(complete_from_slurm(given, env), env).run();
  } catch (const ProgramError& error) {
    return complain(error.what(), error.code());
  } catch (const ConfigError& error) {
    return complain(error.what(), kUsage);
  } catch (const Error& error) {
    return complain(error.what(), kLauncherFailed);
  }
}

}  // namespace fabric::run
