#include "launcher/start/function_launcher.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include <fabric/base/error.h>

#include "fabric/base/broken_pipe_internal.h"
#include "launcher/start/supervisor.h"

namespace fabric {
namespace {

constexpr std::chrono::milliseconds kOutputGrace{5000};
// Tells a result apart from a rank that ended without running the function.
constexpr char kResultMark = 'R';

std::string watch(Supervisor& supervisor, int count) {
  while (!supervisor.all_ended() && !supervisor.failure()) supervisor.poll(-1, std::nullopt);
  if (const auto& failure = supervisor.failure()) {
    supervisor.stop();
    supervisor.flush(Supervisor::kStopGrace);
    throw LaunchError(failure->what() + ". " + failure->tail());
  }
  supervisor.flush(kOutputGrace);
  for (int i = 0; i < count; ++i)
    if (supervisor.result(i).empty())
      throw LaunchError(
          "local rank " + std::to_string(i) +
          " ended with exit code 0 but never ran the function: its main must come to the same launch call as "
          "this process did, and the function must not end the process");
  return supervisor.result(0).substr(1);
}

}  // namespace

int run_as_rank(const Launcher::Function& function, const RankInfo& rank, int result) {
  std::string error;
  try {
    auto bytes = function(rank);
    if (write_all(result, kResultMark + (rank.local_rank == 0 ? bytes : ""))) return 0;
    error = "its result could not be handed over";
  } catch (const std::exception& exception) {
    error = exception.what();
  } catch (...) {
    error = "an exception that is no std::exception";
  }
  std::fprintf(stderr, "the launched function failed: %s\n", error.c_str());
  return 1;
}

void FunctionLauncher::launch() {
  throw MisuseError("the start method '" + kind() +
                    "' needs a function to run in the ranks: write launch(function), or choose 'popen'");
}

std::string FunctionLauncher::launch_function(const Function& function) {
  auto& history = CallHistory::of_this_process();
  if (auto earlier = history.repeat()) {
    if (earlier->ok) return earlier->bytes;
    throw LaunchError(earlier->bytes);
  }
  auto here = running_rank(*env_);
  if (here) {
    auto result = history.take_result();
    if (!result) return function(*here);
    std::exit(run_as_rank(function, *here, result.get()));
  }
  check();
  try {
    auto bytes = run_ranks(function);
    history.record({true, bytes});
    return bytes;
  } catch (const LaunchError& error) {
    history.record({false, error.what()});
    throw;
  }
}

std::string FunctionLauncher::run_ranks(const Function& function) {
  LaunchPlan plan(config_, *env_);
  IgnoreBrokenPipe guard;
  Supervisor supervisor;
  try {
    for (int local_rank = 0; local_rank < config_.num_processes; ++local_rank)
      supervisor.add(plan.rank(local_rank), start(plan, local_rank, function));
  } catch (...) {
    supervisor.stop();
    throw;
  }
  return watch(supervisor, config_.num_processes);
}

}  // namespace fabric
