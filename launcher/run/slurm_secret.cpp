#include "launcher/run/slurm_secret.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <sstream>

#include <fabric/base/error.h>

#include "launcher/os/descriptor.h"
#include "launcher/os/die_with.h"
#include "launcher/os/signal_mask.h"
#include "launcher/start/command.h"

namespace fabric::run {
namespace {

constexpr std::chrono::milliseconds kBroadcastLimit{8000};

bool is_on_path(const std::string& name, const EnvReader& env) {
  std::istringstream folders(env.get_or("PATH", ""));
  for (std::string folder; std::getline(folders, folder, ':');)
    if (!folder.empty() && access((folder + "/" + name).c_str(), X_OK) == 0) return true;
  return false;
}

// Under a name that each node of the step knows. In /tmp, where every node has a folder, whatever its TMPDIR.
std::string path_of_step(const EnvReader& env) {
  // A job that was put back into the queue has the same numbers again, and another count of restarts.
  auto step = env.get_or("SLURM_JOB_ID", "") + "." + env.get_or("SLURM_STEP_ID", "") + "." +
              env.get_or("SLURM_RESTART_COUNT", "0");
  bool is_plain =
      std::all_of(step.begin(), step.end(), [](unsigned char letter) { return isalnum(letter) || letter == '.'; });
  return is_plain && !step.starts_with(".") ? "/tmp/fabric-" + std::to_string(geteuid()) + "-" + step : "";
}

/// Whether a program ended with 0 in time; what it prints is dropped.
bool run_quietly(const std::vector<std::string>& words) {
  auto null = open_dev_null();
  auto arguments = exec_pointers(words);
  pid_t self = getpid(), pid = fork();
  if (pid < 0) return false;
  if (pid == 0) {
    if (!die_with(self)) _exit(1);
    for (int fd = 0; fd <= 2; ++fd) dup2(null.get(), fd);
    unblock_all();
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  auto process = open_pidfd(pid);
  pollfd entry{process.get(), POLLIN, 0};
  if (!process || poll(&entry, 1, static_cast<int>(kBroadcastLimit.count())) <= 0) kill(pid, SIGKILL);
  int status = 0;
  return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// In /tmp anybody may sit on the name, and the job would do without a secret: that of another user ends it instead.
void refuse_foreign_file(const std::string& path) {
  struct stat info;
  if (lstat(path.c_str(), &info) == 0 && info.st_uid != geteuid())
    throw LaunchError(path +
                      ", where SLURM is to bring the secret of this job, belongs to another user. Remove it, or "
                      "set FABRIC_RDZV_TOKEN to a random word, the same on every node");
}

bool broadcast(const std::string& secret, const std::string& path) {
  char name[] = "/tmp/fabric-secret-XXXXXX";
  Descriptor file(mkostemp(name, O_CLOEXEC));  // mode 0600, which sbcast keeps
  if (!file) return false;
  bool sent = write_all(file.get(), secret) && run_quietly({"sbcast", "--force", name, path});
  unlink(name);
  return sent;
}

}  // namespace

void share_secret_by_slurm(rendezvous::NodeSetup& setup, const EnvReader& env) {
  auto path = path_of_step(env);
  if (!env.has("SLURM_NODEID") || path.empty() || !is_on_path("sbcast", env)) return;
  refuse_foreign_file(path);
  if (env.get_or("SLURM_NODEID", "") != "0") {
    setup.secret_file = path;
    return;
  }
  auto secret = rendezvous::in_hex(rendezvous::random_key());
  if (!broadcast(secret, path)) return refuse_foreign_file(path);
  setup.secret = secret;
  setup.secret_file = path;
}

}  // namespace fabric::run
