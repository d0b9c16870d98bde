#include "launcher/run/agent.h"

#include <cstdio>

#include "launcher/os/exit_codes.h"
#include "launcher/os/ignored_signals.h"
#include "launcher/os/visible.h"
#include "launcher/rendezvous/restart_policy.h"
#include "launcher/run/job.h"
#include "launcher/run/job_secret.h"
#include "launcher/run/runner.h"
#include "launcher/run/several_nodes.h"

namespace fabric::run {
namespace {

int run_on_this_node(Runner& runner, const Job& job) {
  RestartPolicy policy(job.max_restarts);
  for (;;) {
    const auto& last = runner.run(job, static_cast<int>(runner.attempts().size()));
    if (last.end == AttemptResult::succeeded) return runner.finish(0);
    auto decision = policy.decide({last.code, last.can_retry(), last.forbids_retry, last.best_step()});
    if (!decision.again) return runner.fail(decision.code, decision.reason);
    runner.say_failure();
    runner.console().say("starting all workers again: restart " + std::to_string(policy.charged()) + " of at most " +
                         std::to_string(job.max_restarts));
  }
}

int complain(const std::string& text, int code) {
  std::fprintf(stderr, "fabric: %s\n", visible_lines(text).c_str());
  return code;
}

int run_all(const Options& options, const EnvReader& env, Lifeline* lifeline) {
  auto ignored = ignore_signals();
  auto planned = plan_job(options, env);
  wipe_secret();
  Runner runner(options, planned.job, env, std::move(ignored), lifeline);
  if (!planned.rendezvous) return run_on_this_node(runner, planned.job);
  return run_on_several_nodes(runner, planned.job, *planned.rendezvous);
}

}  // namespace

int run_job(const Options& given, const EnvReader& env, Lifeline* lifeline) {
  try {
    return run_all(lifeline ? given : complete_from_slurm(given, env), env, lifeline);
  } catch (const ProgramError& error) {
    return complain(error.what(), error.code());
  } catch (const ConfigError& error) {
    return complain(error.what(), kUsage);
  } catch (const Error& error) {
    return complain(error.what(), kLauncherFailed);
  }
}

}  // namespace fabric::run
