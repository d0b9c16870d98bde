#include "launcher/run/guard/guardian_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "launcher/run/guard/process_tree.h"

namespace fabric::run {
namespace {

constexpr std::chrono::seconds kKillLimit{10};

class GuardianProcess {
 public:
  GuardianProcess(const GuardianOptions& options, int socket, int launcher)
      : options_(options), socket_(socket), launcher_(launcher), epoll_(epoll_create1(EPOLL_CLOEXEC)) {}

  [[noreturn]] void run(const std::vector<WorkerStart>& workers) {
    settle_in();
    watch(socket_, kSocket);
    watch(launcher_, kLauncher);
    watch(signals_, kSignals);
    start(workers);
    while (running_ > 0) wait();
    kill_and_leave(0);
  }

 private:
  struct Worker {
    pid_t pid = -1;
    Descriptor process;
    bool running = false;
  };
  // Tags of epoll; workers have the numbers from 0.
  static constexpr std::uint64_t kSocket = 1 << 30, kLauncher = kSocket + 1, kSignals = kSocket + 2;

  void settle_in() {
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "fabric-guardian");
    // Whoever stopped us and kills the launcher leaves nothing behind. In a PID namespace the kernel kills us all.
    if (!options_.pid_namespace) prctl(PR_SET_PDEATHSIG, SIGCONT);
    // A signal that stops the job is for the launcher to act on, and so is one that it passes on: SLURM sends both to
    // every process of a step. Others do what they do by default.
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    for (int number : options_.stop_on) sigaddset(&mask, number);
    signals_ = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    for (int number : options_.forward) sigaddset(&mask, number);
    sigprocmask(SIG_SETMASK, &mask, nullptr);
  }

  void watch(int fd, std::uint64_t tag) {
    epoll_event event{.events = EPOLLIN, .data = {.u64 = tag}};
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  }

  void tell(Event event) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event.nanoseconds = now.tv_sec * 1000000000LL + now.tv_nsec;
    // A launcher that is slow to read makes us wait, one that is gone does not.
    while (send(socket_, &event, sizeof event, MSG_NOSIGNAL) < 0 && errno == EAGAIN) {
      pollfd entries[] = {{socket_, POLLOUT, 0}, {launcher_, POLLIN, 0}};
      poll(entries, 2, -1);
    }
  }

  void start(const std::vector<WorkerStart>& workers) {
    for (std::size_t i = 0; i < workers.size(); ++i) {
      int index = static_cast<int>(i), error = 0;
      Event::Stage stage = Event::none;
      pid_t pid = start_worker(workers[i], options_, error, stage);
      auto process = pid > 0 ? open_pidfd(pid) : Descriptor();
      if (!process) {
        if (pid > 0) error = errno;
        tell({.kind = Event::start_failed, .worker = index, .status = error, .stage = stage});
        kill_and_leave(0);
      }
      watch(process.get(), i);
      workers_.push_back({pid, std::move(process), true});
      ++running_;
      tell({.kind = Event::started, .worker = index, .pid = pid});
    }
    for (const auto& worker : workers) {
      close(worker.output);
      close(worker.error);
      if (worker.heartbeat >= 0) close(worker.heartbeat);
    }
  }

  void wait() {
    epoll_event events[64];
    // The kernel lists what is ready in the order in which it became so, and so two deaths in a row stay in order.
    int count = epoll_wait(epoll_, events, 64, -1);
    for (int i = 0; i < count; ++i) {
      auto tag = events[i].data.u64;
      if (tag == kLauncher)
        kill_and_leave(128 + SIGKILL);
      else if (tag == kSocket)
        answer();
      else if (tag == kSignals)
        take_signals();
      else
        reap(static_cast<int>(tag));
    }
    reap_orphans();
  }

  void reap(int index) {
    auto& worker = workers_[static_cast<std::size_t>(index)];
    int status = 0;
    if (!worker.running || waitpid(worker.pid, &status, WNOHANG) != worker.pid) return;
    worker.running = false;
    worker.process.reset();
    --running_;
    tell({.kind = Event::exited, .worker = index, .pid = worker.pid, .status = status});
  }

  // Helpers whose parents ended are ours now. Workers are not taken here: theirs is the order of epoll.
  void reap_orphans() {
    siginfo_t info{};
    while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0) {
      auto is_worker = [&](const Worker& worker) { return worker.running && worker.pid == info.si_pid; };
      if (std::any_of(workers_.begin(), workers_.end(), is_worker)) return;
      waitpid(info.si_pid, nullptr, WNOHANG);
      info = {};
    }
  }

  void answer() {
    Request request;
    ssize_t size = recv(socket_, &request, sizeof request, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size != static_cast<ssize_t>(sizeof request)) kill_and_leave(128 + SIGKILL);
    if (request.kind == Request::kill_all) return kill_workers();
    for (const auto& worker : workers_) {
      if (!worker.running) continue;
      bool group = request.kind == Request::signal_groups;
      if (!group || kill(-worker.pid, request.number) != 0) kill(worker.pid, request.number);
    }
  }

  void take_signals() {
    signalfd_siginfo info;
    while (read(signals_, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
      if (info.ssi_signo != SIGCHLD) tell({.kind = Event::signalled, .status = static_cast<int>(info.ssi_signo)});
  }

  // The workers' ends are still told one by one; what they started is swept away at the end.
  void kill_workers() {
    for (const auto& worker : workers_)
      if (worker.running) kill(worker.pid, SIGKILL);
  }

  [[noreturn]] void kill_and_leave(int code) {
    kill_descendants(kKillLimit);
    std::error_code ignored;
    if (code != 0 && !options_.temporary_folder.empty())
      std::filesystem::remove_all(options_.temporary_folder, ignored);
    if (code == 0) tell({.kind = Event::all_gone});
    _exit(code);
  }

  GuardianOptions options_;
  int socket_, launcher_, epoll_, signals_ = -1;
  std::vector<Worker> workers_;
  int running_ = 0;
};

}  // namespace

void live_as_guardian(const std::vector<WorkerStart>& workers, const GuardianOptions& options, int socket,
                      int launcher) {
  GuardianProcess(options, socket, launcher).run(workers);
}

}  // namespace fabric::run
