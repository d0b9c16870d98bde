#include "launcher/run/guard/containment.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fabric/base/error.h>

namespace fabric::run {
namespace {

/// Where a hierarchy is mounted, by the name of its file system and an option ("" for any); empty when it is not.
std::string mount_of(const std::string& type, const std::string& option) {
  std::ifstream file("/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    auto dash = line.find(" - ");
    if (dash == std::string::npos || line.compare(dash + 3, type.size() + 1, type + " ") != 0) continue;
    if (!option.empty() && ("," + line.substr(line.rfind(' ') + 1) + ",").find("," + option + ",") == std::string::npos)
      continue;
    std::istringstream words(line);
    std::string id, parent, device, root, point;
    words >> id >> parent >> device >> root >> point;
    return point;
  }
  return "";
}

/// This process's path in a hierarchy: the line "0::/path", or the one that names a controller.
std::string path_in(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    auto controllers = line.substr(first + 1, second - first - 1);
    bool here = controller.empty() ? controllers.empty()
                                   : ("," + controllers + ",").find("," + controller + ",") != std::string::npos;
    if (here) return line.substr(second + 1);
  }
  return "";
}

bool write_file(const std::string& path, const std::string& text) {
  int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool done = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  return done;
}

long counter(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.compare(0, name.size() + 1, name + " ") == 0) return std::atol(line.c_str() + name.size());
  return 0;
}

// Waits for the launcher's end, then kills what is left. The launcher's own end is the only thing it reacts to.
[[noreturn]] void be_janitor(const std::string& path, int launcher) {
  setsid();
  prctl(PR_SET_NAME, "fabric-janitor");
  prctl(PR_SET_PDEATHSIG, SIGCONT);  // so that one that was stopped goes on then
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  // A reader of the launcher's output must not wait for us.
  int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) dup2(null, fd);
  close_inherited({launcher});
  pollfd entry{launcher, POLLIN, 0};
  while (poll(&entry, 1, -1) < 0 && errno == EINTR) continue;
  // A guardian that lives empties the group by itself, and tidies up.
  constexpr int kGuardianMilliseconds = 300;
  for (int i = 0; i < 2000 && rmdir(path.c_str()) != 0 && errno == EBUSY; ++i) {
    if (i >= kGuardianMilliseconds) write_file(path + "/cgroup.kill", "1");
    usleep(1000);
  }
  _exit(0);
}

}  // namespace

Cgroup::Cgroup() {
  auto mount = mount_of("cgroup2", ""), place = path_in("");
  if (mount.empty() || place.empty()) return;
  auto path = mount + (place == "/" ? "" : place) + "/fabric-" + std::to_string(getpid());
  if (mkdir(path.c_str(), 0755) != 0) return;
  Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  bool can_kill = access((path + "/cgroup.kill").c_str(), W_OK) == 0;
  auto launcher = open_pidfd(getpid());
  if (!folder || !can_kill || !launcher || (janitor_ = fork()) < 0) {
    rmdir(path.c_str());
    return;
  }
  if (janitor_ == 0) be_janitor(path, launcher.get());
  path_ = path;
  folder_ = std::move(folder);
}

Cgroup::~Cgroup() {
  if (!folder_) return;
  // A group that is not empty yet is left to the janitor.
  if (rmdir(path_.c_str()) == 0) kill(janitor_, SIGKILL);
}

pid_t fork_contained(int cgroup, bool pid_namespace) {
  clone_args arguments{};
  arguments.exit_signal = SIGCHLD;
  if (pid_namespace) arguments.flags |= CLONE_NEWPID | CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER);
  if (cgroup >= 0) {
    arguments.flags |= CLONE_INTO_CGROUP;
    arguments.cgroup = static_cast<std::uint64_t>(cgroup);
    auto pid = static_cast<pid_t>(syscall(SYS_clone3, &arguments, sizeof arguments));
    // A group that may be made is not always one that may be entered.
    if (pid >= 0 || errno == EAGAIN || errno == ENOMEM) return pid;
    arguments.flags &= ~static_cast<std::uint64_t>(CLONE_INTO_CGROUP);
  }
  if (arguments.flags == 0) return fork();
  return static_cast<pid_t>(syscall(SYS_clone, arguments.flags | SIGCHLD, 0, 0, 0, 0));
}

void set_up_namespace(uid_t user, gid_t group) {
  auto fail = [](const char* what) {
    throw LaunchError(std::string("--pid-namespace: ") + what + ": " + std::strerror(errno));
  };
  if (user != 0) {
    write_file("/proc/self/setgroups", "deny");
    if (!write_file("/proc/self/uid_map", std::to_string(user) + " " + std::to_string(user) + " 1") ||
        !write_file("/proc/self/gid_map", std::to_string(group) + " " + std::to_string(group) + " 1"))
      fail("the user cannot be mapped");
  }
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) fail("mounts cannot be made private");
  if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) fail("/proc cannot be mounted");
}

OomCount count_oom_kills() {
  OomCount count;
  count.machine = counter("/proc/vmstat", "oom_kill");
  auto old_mount = mount_of("cgroup", "memory"), old_place = path_in("memory");
  if (!old_place.empty())
    count.own = counter(old_mount + (old_place == "/" ? "" : old_place) + "/memory.oom_control", "oom_kill");
  else if (auto mount = mount_of("cgroup2", ""); !mount.empty())
    count.own = counter(mount + path_in("") + "/memory.events", "oom_kill");
  return count;
}

}  // namespace fabric::run
