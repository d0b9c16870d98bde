#include "launcher/run/hosts/hosts_job.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "launcher/os/exit_codes.h"
#include "launcher/os/ignored_signals.h"
#include "launcher/os/signal_name.h"
#include "launcher/rendezvous/settings.h"
#include "launcher/run/hosts/host_group.h"
#include "launcher/run/hosts/hosts_plan.h"

namespace fabric::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = HostGroup::Clock;

/// After the first host failed to start: what the others have to say is worth so long.
constexpr seconds kTellAll{2};
/// For launchers that hear from each other that the job is over; beyond the grace time; for those whose ranks are gone.
constexpr seconds kSettleLimit{5}, kMargin{10}, kHangUpLimit{5};
constexpr seconds kFlushLimit{1};
constexpr milliseconds kLookForSignals{200};
constexpr std::chrono::hours kPatience{24};

SshSettings ssh_settings(const Options& options) {
  auto timing = rendezvous::parse_timing(options.rdzv_conf);
  return {options.ssh_args, std::max(1, static_cast<int>(std::ceil(timing.heartbeat))), timing.misses};
}

// Each connection has a process and three pipes.
void make_room_for_descriptors(std::size_t hosts) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, 6 * hosts + 64));
  setrlimit(RLIMIT_NOFILE, &limit);
}

class HostsJob {
 public:
  HostsJob(const Options& options, const EnvReader& env)
      : options_(options),
        timing_(rendezvous::parse_timing(options.rdzv_conf)),
        plan_(options, env),
        group_(options.hosts, ssh_settings(options), options.copies_program, console_) {
    take_signals();
  }

  int run() {
    while (!group_.is_over()) {
      group_.wait(signals_.get(), time_to_wait());
      heed_signals();
      group_.advance();
      note_ends();
      if (!begun_ && !ends_at_ && !stop_signal_) decide();
      if (begun_) give_work();
      keep_time();
      console_.write_some();
    }
    return conclude();
  }

 private:
  void take_signals() {
    struct sigaction hang_up;
    if (sigaction(SIGHUP, nullptr, &hang_up) == 0 && hang_up.sa_handler == SIG_IGN)
      std::erase(options_.stop_on, SIGHUP);
    sigset_t handled;
    sigemptyset(&handled);
    for (int number : options_.stop_on) sigaddset(&handled, number);
    for (int number : options_.forward) sigaddset(&handled, number);
    // A launcher that stands still gives no sign of life, and the hosts would take it for gone.
    sigaddset(&handled, SIGTSTP);
    sigprocmask(SIG_BLOCK, &handled, nullptr);
    signals_ = above_stdio(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK), "signals");
  }

  void heed_signals() {
    signalfd_siginfo info;
    while (read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      int number = static_cast<int>(info.ssi_signo);
      auto is_in = [&](const std::vector<int>& list) {
        return std::find(list.begin(), list.end(), number) != list.end();
      };
      if (is_in(options_.stop_on))
        stop(number);
      else if (is_in(options_.forward))
        group_.send_to_all({"signal", std::to_string(number)});
      else
        console_.say("a job on several hosts is not halted by Ctrl-Z: its hosts would take this launcher for gone");
    }
  }

  void stop(int number) {
    bool is_first = stop_signal_ == 0, is_hasty = number == SIGINT || number == SIGQUIT;
    stop_signal_ = is_first ? number : stop_signal_;
    if (!begun_) return group_.kill_all();
    group_.send_to_all({"signal", std::to_string(number)});
    dismiss_idle();
    if (is_first) return end_within(grace() + kMargin);
    if (!is_hasty) return;
    // The launchers kill at once; whoever asks a third time does not even wait for that.
    if (was_hasty_) group_.kill_all();
    was_hasty_ = true;
    end_within(kHangUpLimit);
  }

  /// Those that have no work: there will be none.
  void dismiss_idle() {
    for (auto& member : group_.members()) {
      if (member.state == Member::starting) member.process->kill_now();
      if (member.state == Member::ready) member.process->hang_up();
    }
  }

  std::chrono::nanoseconds grace() const { return rendezvous::in_clock(std::min(options_.grace_seconds, 1e7)); }

  void end_within(std::chrono::nanoseconds limit) {
    ends_at_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(limit);
  }

  /// Whether enough hosts are ready, or can be no more.
  void decide() {
    auto now = Clock::now();
    int ready = group_.count(Member::ready), starting = group_.count(Member::starting);
    bool has_failed = ready + starting < static_cast<int>(group_.members().size());
    if (has_failed && !failed_at_) failed_at_ = now;
    if (ready >= options_.min_nodes && !enough_at_) enough_at_ = now;
    if (ready + starting < options_.min_nodes) {
      // Others may have failed as well: all of it is told at once.
      if (starting > 0 && now < *failed_at_ + kTellAll) return;
      return give_up();
    }
    if (ready < options_.min_nodes) return;
    bool waits_for_more = is_elastic() && starting > 0 && now < *enough_at_ + rendezvous::in_clock(timing_.last_call);
    if (!waits_for_more) begun_ = true;
  }

  void give_up() {
    code_ = kRendezvous;
    console_.say("the job was not started");
    group_.hang_up();
    has_hung_up_ = true;
    end_within(kHangUpLimit);
  }

  /// The job, to each host that waits for it: at the beginning, and later to those that are late.
  void give_work() {
    auto& members = group_.members();
    for (std::size_t i = 0; i < members.size(); ++i) {
      auto& member = members[i];
      if (member.state != Member::ready || ends_at_) continue;
      if (!plan_.has_leader()) plan_.lead(i, *member.hello);
      member.process->send(to_packet(plan_.job_for(i)));
      member.state = Member::working;
    }
  }

  /// What the hosts came to, told once each.
  void note_ends() {
    auto& members = group_.members();
    told_.resize(members.size());
    for (std::size_t i = 0; i < members.size(); ++i) {
      const auto& member = members[i];
      if (!member.is_settled() || told_[i]) continue;
      told_[i] = true;
      if (member.state != Member::ended && !stop_signal_ && !has_hung_up_)
        console_.say_lines("fabric: " + member.host.name + ": " + member.problem + "\n");
      if (member.state == Member::ended && member.code == 0) has_succeeded_ = true;
      bool costs_the_job = member.state != Member::ended && begun_ && !is_elastic();
      int code = member.state == Member::ended ? member.code : costs_the_job ? int{kRendezvous} : 0;
      if (code_ == 0) code_ = code;
      if (begun_ && !ends_at_ && must_all_end()) end_within(time_to_settle(member));
    }
  }

  /// The launchers end together by themselves; when one that ended well, or one that a job of so many cannot spare, is
  /// no longer there, the others have a limited time for that.
  bool must_all_end() const {
    return has_succeeded_ ||
           group_.count(Member::working) + group_.count(Member::ready) + group_.count(Member::starting) <
               options_.min_nodes;
  }

  /// Who ended has told the others; that a host is gone they notice by its silence.
  std::chrono::nanoseconds time_to_settle(const Member& member) const {
    bool is_told = member.state == Member::ended;
    auto silence = rendezvous::in_clock(timing_.heartbeat * timing_.misses + timing_.replacement);
    return has_succeeded_ ? grace() + kMargin : is_told ? kSettleLimit : silence + kSettleLimit;
  }

  bool is_elastic() const { return options_.min_nodes < options_.max_nodes; }

  void keep_time() {
    auto now = Clock::now();
    if (now >= next_beat_) {
      next_beat_ = now + beat_period();
      group_.beat();
    }
    if (ends_at_) dismiss_idle();
    if (!ends_at_ || now < *ends_at_) return;
    // A reader that is slow keeps nobody from ending well.
    for (const auto& member : group_.members())
      if (has_succeeded_ && !stop_signal_ &&
          (member.process->is_held_back() || now < member.process->heard() + kMargin))
        return end_within(seconds(1));
    if (has_hung_up_) group_.kill_all();
    group_.hang_up();
    // A launcher that still runs ranks gives them their time now, unless it has done so.
    end_within(has_hung_up_ || stop_signal_ ? kHangUpLimit : grace() + kMargin);
    has_hung_up_ = true;
  }

  std::chrono::nanoseconds beat_period() const {
    return std::min<std::chrono::nanoseconds>(timing_.beat_period(), seconds(1));
  }

  milliseconds time_to_wait() const {
    auto next = ends_at_ ? std::min(*ends_at_, next_beat_) : next_beat_;
    auto left = std::chrono::ceil<milliseconds>(next - Clock::now());
    return std::clamp(left, milliseconds(0), milliseconds(1000));
  }

  int conclude() {
    // A reader that is merely slow gets all of it, unless we were or are told to end.
    for (auto end = Clock::now() + kPatience; !stop_signal_ && !console_.is_empty() && Clock::now() < end;) {
      console_.flush(kLookForSignals);
      heed_signals();
    }
    console_.flush(kFlushLimit);
    // Of an elastic job a host may have failed, and the others came to a good end without it.
    if (has_succeeded_ && (code_ == 0 || is_elastic())) return 0;
    if (stop_signal_) return 128 + stop_signal_;
    return code_ != 0 ? code_ : kRendezvous;
  }

  Options options_;
  rendezvous::Timing timing_;
  HostsPlan plan_;  // takes the secret out of the environment before any process is made
  Console console_;
  HostGroup group_;
  Descriptor signals_;
  bool begun_ = false, has_succeeded_ = false, has_hung_up_ = false, was_hasty_ = false;
  int stop_signal_ = 0, code_ = 0;
  std::vector<bool> told_;
  Clock::time_point next_beat_ = Clock::now();
  std::optional<Clock::time_point> ends_at_, failed_at_, enough_at_;
};

}  // namespace

int run_on_hosts(const Options& options, const EnvReader& env) {
  ignore_signals();
  make_room_for_descriptors(options.hosts.size());
  HostsJob job(options, env);
  return job.run();
}

}  // namespace fabric::run
