#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include <fabric/base/tree.h>

#include "launcher/run/watch/error_file.h"
#include "launcher/run/workers/worker_environment.h"

namespace fabric::run {

/// How one worker ended.
struct WorkerEnd {
  enum State { not_started, running, succeeded, failed, stopped };
  int rank = 0, local_rank = 0;
  pid_t pid = -1;
  State state = not_started;
  int code = 0;    // 128 + n when killed by signal n
  int signal = 0;  // n, or 0
  bool dumped_core = false;
  long long nanoseconds = 0;  // when, by the monotonic clock of the node
  bool out_of_memory = false;
  std::string hang;    // why it counts as hung
  std::string stacks;  // where its threads were then
  long long step = -1;
  std::string section;  // in which it was last
  std::optional<ErrorFile> error;
  std::string error_path;
  std::vector<std::string> last_lines;  // of its stderr
};

/// How one attempt ended.
struct AttemptResult {
  enum End { succeeded, failed, hung, signalled, cannot_start, guardian_lost, not_all_ended, stopped_elsewhere };
  End end = succeeded;
  int number = 0;
  int code = 0;
  int signal = 0;      // that stopped the job
  std::string reason;  // for ends that no worker is the cause of
  int first = -1;      // the worker that is the cause, by local rank
  double seconds = 0;  // from start to end
  bool forbids_retry = false;
  std::string why_no_retry;
  std::vector<WorkerEnd> workers;
  /// The cause is on this node.
  bool is_failure() const { return end != succeeded && end != signalled && end != stopped_elsewhere; }
  bool can_retry() const { return signal == 0 && (end == failed || end == hung); }
  /// The first failure was a setting that is wrong: nobody's fault but the command line's, which is told in one line.
  bool is_of_settings() const;
  /// The highest step that any worker reported; -1: none.
  long long best_step() const;
};

/// The first failure, in words, for the end of stderr. Empty when rank 0 has told it already.
std::string report_text(const Job& job, const AttemptResult& attempt, const std::string& log_folder);
/// All attempts.
Tree report_tree(const Job& job, const std::vector<AttemptResult>& attempts, int code, const std::string& log_folder);
/// Writes it as JSON, the way AtomicFile writes. Returns what went wrong, or nothing.
std::string write_report(const std::string& path, const Tree& report);

/// One line: who failed on this node, and how; `in_full` with pid and host.
std::string cause_in_words(const Job& job, const AttemptResult& attempt, bool in_full = true);

}  // namespace fabric::run
