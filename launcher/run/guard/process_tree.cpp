#include "launcher/run/guard/process_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

namespace fabric::run {
namespace {

// Plain reads, no streams: this runs while 100 processes die, and again for each that is new.
bool read_parent(pid_t pid, pid_t& parent, bool& is_dead) {
  char path[64], text[512], state = 0;
  int threads = 0;
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  if (size <= 0) return false;
  text[size] = 0;
  // The name stands in brackets and may hold some itself.
  const char* end = std::strrchr(text, ')');
  const char* form = " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*u %*u %*d %*d %d";
  if (!end || std::sscanf(end + 1, form, &state, &parent, &threads) != 3) return false;
  // The state is that of the first thread; one that has ended leaves a process alive whose other threads go on.
  is_dead = state == 'Z' && threads <= 1;
  return true;
}

bool reap_all() {
  for (;;) {
    pid_t pid = waitpid(-1, nullptr, WNOHANG);
    if (pid < 0 && errno == ECHILD) return true;
    if (pid <= 0) return false;
  }
}

}  // namespace

std::vector<pid_t> descendants(pid_t root) {
  std::vector<std::pair<pid_t, pid_t>> all;
  DIR* folder = opendir("/proc");
  if (!folder) return {};
  while (const dirent* entry = readdir(folder)) {
    pid_t pid = std::atoi(entry->d_name), parent = 0;
    bool is_dead = false;
    if (pid > 0 && read_parent(pid, parent, is_dead)) all.emplace_back(pid, is_dead ? -parent : parent);
  }
  closedir(folder);
  std::vector<pid_t> found, queue{root};
  while (!queue.empty()) {
    pid_t at = queue.back();
    queue.pop_back();
    for (auto [pid, parent] : all)
      if (parent == at) found.push_back(pid), queue.push_back(pid);
  }
  return found;
}

bool kill_descendants(std::chrono::milliseconds limit) {
  auto deadline = std::chrono::steady_clock::now() + limit;
  while (!reap_all()) {
    for (pid_t pid : descendants(getpid())) kill(pid, SIGKILL);
    if (std::chrono::steady_clock::now() > deadline) return false;
    usleep(1000);
  }
  return true;
}

}  // namespace fabric::run
