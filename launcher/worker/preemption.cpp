#include <fabric/launcher/preemption.h>

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "launcher/start/command.h"

namespace fabric {
namespace {

std::atomic<int> received_signal{0};
std::atomic<bool> is_watched{false};
static_assert(std::atomic<int>::is_always_lock_free);

void note(int number) { received_signal.store(number, std::memory_order_relaxed); }

std::string job_id(const EnvReader& env) {
  auto array = env.get("SLURM_ARRAY_JOB_ID"), task = env.get("SLURM_ARRAY_TASK_ID");
  if (array && task) return *array + "_" + *task;
  return env.get_or("SLURM_JOB_ID", "");
}

/// The exit code of a program found on the search path; -1 when it cannot be run. Its stdout is ours.
int run_program(const std::vector<std::string>& words) {
  auto arguments = exec_pointers(words);
  pid_t pid = -1;
  int error = posix_spawnp(&pid, arguments[0], nullptr, nullptr, arguments.data(), environ);
  if (error != 0) {
    errno = error;
    return -1;
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

struct PreemptionSignal::Handlers {
  std::vector<std::pair<int, struct sigaction>> previous;
};

PreemptionSignal::PreemptionSignal(std::initializer_list<int> signals) : handlers_(std::make_unique<Handlers>()) {
  if (is_watched.exchange(true))
    throw MisuseError("there is a PreemptionSignal already; one object watches all signals: PreemptionSignal({A, B})");
  received_signal = 0;
  for (int number : signals) {
    struct sigaction ours = {};
    struct sigaction theirs = {};
    ours.sa_handler = note;
    // Reads and writes that the signal interrupts go on: most libraries do not expect anything else.
    ours.sa_flags = SA_RESTART;
    if (sigaction(number, &ours, &theirs) == 0) {
      handlers_->previous.emplace_back(number, theirs);
      continue;
    }
    for (const auto& [taken, action] : handlers_->previous) sigaction(taken, &action, nullptr);
    is_watched = false;
    throw ConfigError("signal " + std::to_string(number) + " cannot be handled: " + std::strerror(errno));
  }
}

PreemptionSignal::~PreemptionSignal() {
  for (const auto& [number, action] : handlers_->previous) sigaction(number, &action, nullptr);
  is_watched = false;
}

int PreemptionSignal::number() const noexcept { return received_signal.load(std::memory_order_relaxed); }

void PreemptionSignal::clear() noexcept { received_signal = 0; }

bool requeue_job() {
  auto id = job_id(*process_env());
  if (id.empty()) {
    log::warn("the job cannot be put back into the queue: SLURM_JOB_ID is not set, so this is no SLURM job");
    return false;
  }
  int code = run_program({"scontrol", "requeue", id});
  if (code == 0) return true;
  log::warn("the job cannot be put back into the queue: " +
            (code < 0 ? "scontrol: " + std::string(std::strerror(errno))
                      : "scontrol requeue " + id + " ended with code " + std::to_string(code)));
  return false;
}

int restart_count() {
  auto env = process_env();
  return env->get_int("SLURM_RESTART_COUNT").value_or(0) + env->get_int("TORCHELASTIC_RESTART_COUNT").value_or(0);
}

}  // namespace fabric
