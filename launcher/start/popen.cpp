#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>

#include <fabric/base/error.h>

#include "launcher/start/function_launcher.h"
#include "launcher/start/popen_job.h"
#include "launcher/start/single_thread.h"

namespace fabric {
namespace {

// Children belong to the process, not to an object: all launchers of a process share them.
PopenJob* job = nullptr;
bool joined = false;
std::terminate_handler previous_terminate = nullptr;

std::mutex& job_mutex() {
  static std::mutex mutex;
  return mutex;
}

void at_exit(int status, void*) {
  if (getpid() != job->owner()) return;
  if (status != 0) return job->abandon();
  if (int code = job->join()) {
    std::fflush(nullptr);
    _exit(code);
  }
}

void print_exception() {
  try {
    if (auto exception = std::current_exception()) std::rethrow_exception(exception);
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "[fabric] error: rank 0 failed as well: %s\n", exception.what());
  } catch (...) {
    std::fputs("[fabric] error: rank 0 failed as well\n", stderr);
  }
}

// A rank that dies makes the others throw; the job must then end with the code of the one that died first. Otherwise
// the children are stopped here and not by the system, so that what they started ends too.
[[noreturn]] void at_terminate() {
  if (getpid() == job->owner()) {
    if (job->is_failing()) print_exception();
    job->abandon();
  }
  previous_terminate();
  std::abort();
}

void start_job(const Launcher::Config& config, const EnvReader& env, PopenJob::Start start) {
  job = new PopenJob(config, env, start);
  if (job->local_rank() != 0) return;  // a copy owns no children
  on_exit(at_exit, nullptr);
  previous_terminate = std::set_terminate(at_terminate);
}

class PopenLauncher : public Launcher {
 public:
  PopenLauncher(const Config& config, std::shared_ptr<EnvReader> env, PopenJob::Start start)
      : config_(config), env_(std::move(env)), start_(start) {}
  std::string kind() const override { return start_ == PopenJob::Start::copy ? "copy" : "popen"; }
  bool needs_function() const override { return false; }

  void launch() override {
    std::lock_guard lock(job_mutex());
    if (job && getpid() == job->owner()) {
      check_same(job->config().num_processes, job->config().num_nodes);
      // Children that have come to their end already are no reason to refuse: they may need no more of rank 0.
      if (joined)
        throw MisuseError(
            "the other ranks of this program have ended, since join() was called; launch before join(), or run "
            "the program again");
      return tell(job->plan());
    }
    if (env_->has("LOCAL_RANK")) return check_running_rank();
    if (config_.num_processes == 1) return launch_alone();
    if (start_ == PopenJob::Start::copy) require_single_thread("copy this process");
    start_job(config_, *env_, start_);
    tell(job->plan(), job->local_rank());
  }

  std::string launch_function(const Function&) override {
    throw MisuseError("the start method '" + kind() +
                      "' takes no function: call launch() and go on, or choose 'spawn' or 'fork'");
  }

  int join() override {
    std::lock_guard lock(job_mutex());
    if (!job || getpid() != job->owner()) return 0;
    joined = true;
    return job->join();
  }

 private:
  void launch_alone() {
    LaunchPlan plan(config_, *env_);
    if (config_.num_nodes > 1) tell(plan);
  }

  void tell(const LaunchPlan& plan, int local_rank = 0) {
    for (const auto& [name, value] : plan.variables(local_rank)) env_->set(name, value);
  }

  void check_same(int num_processes, int num_nodes) const {
    if (num_processes == config_.num_processes && num_nodes == config_.num_nodes) return;
    auto text = [](int processes, int nodes) {
      return std::to_string(processes) + " processes on " + std::to_string(nodes) + " nodes";
    };
    throw MisuseError("this program was launched with " + text(num_processes, num_nodes) +
                      " and cannot be launched again with " + text(config_.num_processes, config_.num_nodes) +
                      ": the ranks of the first launch still run. Use the same numbers, or run another program");
  }

  void check_running_rank() const {
    if (!env_->has(kLaunchedVariable)) return;
    auto processes = env_->get_int("LOCAL_WORLD_SIZE", 1);
    if (processes) check_same(*processes, env_->get_int("GROUP_WORLD_SIZE", 1).value_or(1));
  }

  Config config_;
  std::shared_ptr<EnvReader> env_;
  PopenJob::Start start_;
};

}  // namespace

std::unique_ptr<Launcher> make_popen_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env) {
  return std::make_unique<PopenLauncher>(config, std::move(env), PopenJob::Start::re_execute);
}

std::unique_ptr<Launcher> make_copy_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env) {
  return std::make_unique<PopenLauncher>(config, std::move(env), PopenJob::Start::copy);
}

}  // namespace fabric
