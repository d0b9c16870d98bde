#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "launcher/run/console.h"
#include "launcher/run/guard/containment.h"
#include "launcher/run/guard/guardian.h"
#include "launcher/run/program.h"
#include "launcher/run/watch/failure_report.h"
#include "launcher/run/watch/heartbeats.h"
#include "launcher/run/watch/stack_dump.h"
#include "launcher/run/workers/worker_logs.h"

namespace fabric::rendezvous {
class Node;
}

namespace fabric::run {

class Lifeline;

/// What all attempts share. The signal descriptor delivers what is in --stop-on and --forward.
struct AttemptContext {
  const Options& options;
  const Job& job;
  const Program& program;
  const Variables& variables;
  const LogFolders& folders;
  Console& console;
  GuardianOptions guardian;
  std::string prefix_template;
  int signals = -1, children = -1;  // descriptors that deliver them
  int heartbeat_number = 3;
  rendezvous::Node* node = nullptr;  // of a job on several nodes
  Lifeline* lifeline = nullptr;      // of a job that was started from elsewhere
};

/// One attempt: starts all workers of this node, passes on what they write, watches them, and ends them together. One
/// epoll loop; nothing else waits.
class Attempt {
 public:
  Attempt(const AttemptContext& context, int number);
  ~Attempt();
  /// Returns when no process of the attempt is left, and all that they wrote has been read.
  AttemptResult run();

 private:
  using Clock = std::chrono::steady_clock;
  struct Worker {
    std::unique_ptr<WorkerStream> output, error;
    Descriptor heartbeat_socket;
    Heartbeats heartbeats;
    bool hears[2] = {true, true};  // stdout and stderr; false while held back
  };
  enum class Source : std::uint32_t {
    output,
    error,
    heartbeat,
    guardian,
    guardian_end,
    signals,
    children,
    console,
    node,
    lifeline,
    stacks
  };

  std::vector<WorkerStart> prepare(std::vector<Descriptor>& kept);
  void watch(int fd, Source source, std::size_t index = 0);
  void wait();
  int milliseconds_to_wait() const;
  void take(Source source, std::size_t index);
  void take_event(const Event& event);
  void note_start(const Event& event);
  void note_exit(const Event& event);
  void take_signals();
  void look_after_guardian();
  void heed_other_nodes();
  void heed_lifeline();
  void check_deadlines();
  void lose_guardian(int status);
  void hold_back_or_go_on();
  void watch_console();

  // attempt_hangs.cpp
  void read_heartbeat(std::size_t index);
  std::optional<Clock::time_point> next_look_for_hangs() const;
  void check_hangs(Clock::time_point now);
  void begin_dump(std::vector<std::size_t> hung);
  void end_as_hung();

  /// Asks all workers to end, and kills them after the grace time. The first call counts.
  void stop(AttemptResult::End end, int signal);
  void kill_now();
  bool is_held_back() const;
  bool is_over() const;
  void conclude();

  AttemptContext context_;
  AttemptResult attempt_;
  std::vector<Worker> workers_;
  std::optional<Guardian> guardian_;
  Descriptor epoll_;
  OomCount oom_;
  Clock::time_point start_;
  bool stopping_ = false, killed_ = false, all_gone_ = false, woke_guardian_ = false;
  long long asked_at_ = 0;  // nanoseconds of the monotonic clock
  bool waits_for_console_[2] = {false, false};
  std::optional<Clock::time_point> kill_at_, give_up_at_, drain_until_, require_all_at_, name_hang_at_;
  std::vector<std::size_t> hung_;  // the likely cause first
  std::optional<StackDump> dump_;  // of those
};

/// A socket and pipes for each worker, a connection for each other node, and what the launcher itself needs.
int descriptors_needed(int local_size, int nodes);

}  // namespace fabric::run
