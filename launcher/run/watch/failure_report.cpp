#include "launcher/run/watch/failure_report.h"

#include <algorithm>
#include <csignal>
#include <cstdio>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/tree_io.h>

#include "launcher/os/signal_name.h"
#include "launcher/os/utf8.h"

namespace fabric::run {
namespace {

const char* state_name(WorkerEnd::State state) {
  switch (state) {
    case WorkerEnd::not_started:
      return "not started";
    case WorkerEnd::running:
      return "running";
    case WorkerEnd::succeeded:
      return "succeeded";
    case WorkerEnd::failed:
      return "failed";
    case WorkerEnd::stopped:
      return "stopped";
  }
  return "";
}

const char* end_name(AttemptResult::End end) {
  switch (end) {
    case AttemptResult::succeeded:
      return "succeeded";
    case AttemptResult::failed:
      return "failed";
    case AttemptResult::hung:
      return "hung";
    case AttemptResult::signalled:
      return "stopped by a signal";
    case AttemptResult::cannot_start:
      return "could not start";
    case AttemptResult::guardian_lost:
      return "lost its guardian";
    case AttemptResult::not_all_ended:
      return "not all ranks ended";
    case AttemptResult::stopped_elsewhere:
      return "stopped with the other nodes";
  }
  return "";
}

std::string indented(const std::string& text) {
  std::string out = "      ";
  for (char letter : text) {
    out += letter;
    if (letter == '\n') out += "      ";
  }
  while (out.ends_with(' ') || out.ends_with('\n')) out.pop_back();
  return out + "\n";
}

std::string who(const Job& job, const WorkerEnd& worker) {
  return "rank " + std::to_string(worker.rank) + " (local rank " + std::to_string(worker.local_rank) + " on " +
         job.host + ", pid " + std::to_string(worker.pid) + ")";
}

std::string hint(const WorkerEnd& worker) {
  if (worker.out_of_memory) return "  the kernel killed it because memory ran out\n";
  bool makes_core = worker.signal == SIGSEGV || worker.signal == SIGABRT || worker.signal == SIGBUS ||
                    worker.signal == SIGFPE || worker.signal == SIGILL;
  if (!makes_core) return "";
  if (worker.dumped_core) return "  its core was dumped as /proc/sys/kernel/core_pattern says\n";
  return "  no core was dumped; `ulimit -c unlimited` before the start allows it\n";
}

// As far as its heartbeats told.
std::string last_place(const WorkerEnd& worker) {
  std::string text;
  if (worker.step >= 0) text += "step " + std::to_string(worker.step);
  if (!worker.section.empty()) text += std::string(text.empty() ? "" : ", ") + "section '" + worker.section + "'";
  return text.empty() ? "" : "  its last heartbeats: " + text + "\n";
}

std::string cause_text(const WorkerEnd& worker) {
  std::string text = hint(worker);
  if (worker.error && worker.error->problem.empty()) {
    bool has_lines = worker.error->message.find('\n') != std::string::npos;
    text += "  error: " + (has_lines ? "\n" + indented(worker.error->message) : worker.error->message + "\n");
    if (!worker.error->backtrace.empty()) text += "  backtrace:\n" + indented(worker.error->backtrace);
  } else if (worker.error) {
    text += "  its error file " + worker.error_path + " is unreadable: " + worker.error->problem + "\n";
  }
  text += last_place(worker);
  if (!worker.stacks.empty()) text += "  where its threads were:\n" + indented(worker.stacks);
  if (worker.last_lines.empty()) return text + "  it wrote nothing to stderr\n";
  text += "  last lines of its stderr:\n";
  for (const auto& line : worker.last_lines) text += "      " + line + "\n";
  return text;
}

std::string others_text(const AttemptResult& attempt) {
  std::string lists[5];
  for (const auto& worker : attempt.workers) {
    if (worker.local_rank == attempt.first) continue;
    auto& list = lists[worker.state];
    list += (list.empty() ? "" : ", ") + std::to_string(worker.rank);
    if (worker.state == WorkerEnd::failed) list += " (" + end_in_words(worker.code, worker.signal) + ")";
    if (attempt.end == AttemptResult::hung && !worker.section.empty()) list += " (in section '" + worker.section + "')";
  }
  std::string text;
  for (auto state : {WorkerEnd::failed, WorkerEnd::stopped, WorkerEnd::succeeded, WorkerEnd::not_started})
    if (!lists[state].empty()) text += std::string(text.empty() ? "" : "; ") + state_name(state) + ": " + lists[state];
  return text.empty() ? "" : "  other ranks: " + text + "\n";
}

bool is_settings_error(const WorkerEnd& worker) { return worker.error && worker.error->of_settings; }

// Rank 0 writes the line to its own stderr, where it was not stopped before that.
std::string settings_text(const AttemptResult& attempt) {
  for (const auto& worker : attempt.workers)
    if (worker.rank == 0 && is_settings_error(worker)) return "";
  const auto& worker = attempt.workers[static_cast<std::size_t>(attempt.first)];
  return "fabric: rank " + std::to_string(worker.rank) + ": " + worker.error->message + "\n";
}

Tree worker_tree(const WorkerEnd& worker, const Job& job) {
  Tree tree;
  tree["rank"] = worker.rank;
  tree["local_rank"] = worker.local_rank;
  tree["host"] = job.host;
  tree["pid"] = static_cast<int>(worker.pid);
  tree["state"] = state_name(worker.state);
  tree["code"] = worker.code;
  tree["signal"] = worker.signal ? Tree(signal_name(worker.signal)) : Tree();
  tree["monotonic_seconds"] = static_cast<double>(worker.nanoseconds) * 1e-9;
  tree["out_of_memory"] = worker.out_of_memory;
  if (worker.step >= 0) tree["step"] = worker.step;
  if (!worker.section.empty()) tree["section"] = worker.section;
  if (!worker.hang.empty()) tree["hang"] = worker.hang;
  if (!worker.stacks.empty()) tree["stacks"] = worker.stacks;
  if (worker.error) {
    bool good = worker.error->problem.empty();
    tree["error"] = good ? Tree(worker.error->message) : Tree();
    if (good && !worker.error->backtrace.empty()) tree["backtrace"] = worker.error->backtrace;
    if (!good) tree["error_file_problem"] = worker.error->problem;
  }
  Tree::List lines;
  for (const auto& line : worker.last_lines) lines.push_back(line);
  tree["last_lines"] = std::move(lines);
  return tree;
}

}  // namespace

bool AttemptResult::is_of_settings() const {
  return first >= 0 && is_settings_error(workers[static_cast<std::size_t>(first)]);
}

long long AttemptResult::best_step() const {
  long long best = -1;
  for (const auto& worker : workers) best = std::max(best, worker.step);
  return best;
}

std::string cause_in_words(const Job& job, const AttemptResult& attempt, bool in_full) {
  if (attempt.first < 0) return attempt.reason + (in_full && job.nodes > 1 ? " (on " + job.host + ")" : "");
  const auto& worker = attempt.workers[static_cast<std::size_t>(attempt.first)];
  auto end = attempt.end == AttemptResult::hung ? worker.hang : end_in_words(worker.code, worker.signal);
  return (in_full ? who(job, worker) : "rank " + std::to_string(worker.rank)) + " " + end;
}

std::string report_text(const Job& job, const AttemptResult& attempt, const std::string& log_folder) {
  if (attempt.is_of_settings()) return settings_text(attempt);
  std::string text = "fabric: the job failed: ";
  char when[64];
  std::snprintf(when, sizeof when, "after %.1f s, attempt %d", attempt.seconds, attempt.number);
  if (attempt.first < 0) {
    text += cause_in_words(job, attempt) + "; " + when + "\n";
  } else {
    const auto& worker = attempt.workers[static_cast<std::size_t>(attempt.first)];
    text += cause_in_words(job, attempt) + "; " + when + "\n" + cause_text(worker);
  }
  text += others_text(attempt);
  if (!attempt.why_no_retry.empty()) text += "  the job is not to be started again: " + attempt.why_no_retry + "\n";
  if (!log_folder.empty()) text += "  logs: " + log_folder + "\n";
  return text;
}

Tree report_tree(const Job& job, const std::vector<AttemptResult>& attempts, int code, const std::string& log_folder) {
  Tree tree;
  tree["run_id"] = job.id;
  tree["host"] = job.host;
  tree["node_rank"] = job.node;
  tree["world_size"] = job.world_size;
  tree["exit_code"] = code;
  tree["outcome"] = attempts.empty() ? "not started" : end_name(attempts.back().end);
  tree["logs"] = log_folder;
  Tree::List list;
  for (const auto& attempt : attempts) {
    Tree entry;
    entry["attempt"] = attempt.number;
    entry["outcome"] = end_name(attempt.end);
    entry["code"] = attempt.code;
    entry["seconds"] = attempt.seconds;
    if (!attempt.reason.empty()) entry["reason"] = attempt.reason;
    if (attempt.first >= 0)
      entry["root_cause"] = worker_tree(attempt.workers[static_cast<std::size_t>(attempt.first)], job);
    Tree::List workers;
    for (const auto& worker : attempt.workers) workers.push_back(worker_tree(worker, job));
    entry["workers"] = std::move(workers);
    list.push_back(std::move(entry));
  }
  tree["attempts"] = std::move(list);
  make_utf8(tree);
  return tree;
}

std::string write_report(const std::string& path, const Tree& report) {
  try {
    write_whole_file(path, write_json(report, true) + "\n");
    return "";
  } catch (const Error& error) {
    return std::string("the report: ") + error.what();
  }
}

}  // namespace fabric::run
