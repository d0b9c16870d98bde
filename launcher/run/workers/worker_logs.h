#pragma once

#include <string>
#include <vector>

#include "launcher/os/descriptor.h"
#include "launcher/os/lines.h"
#include "launcher/run/console.h"
#include "launcher/run/options.h"
#include "launcher/run/workers/worker_environment.h"

namespace fabric::run {

/// The folders of a job: DIR/<run id>_<random>/attempt_<n>/<local rank>/. Without --log-dir they are temporary, hold
/// error files only, and are removed in the end.
class LogFolders {
 public:
  LogFolders(const Options& options, const Job& job);
  ~LogFolders();
  LogFolders(const LogFolders&) = delete;
  LogFolders& operator=(const LogFolders&) = delete;
  /// Makes the folder of a worker; empty when there is none to be (--log-dir /dev/null, or no disk will take it).
  std::string of_worker(int attempt, int local_rank) const;
  const std::string& root() const { return root_; }
  bool is_temporary() const { return is_temporary_; }

 private:
  std::string root_;
  bool is_temporary_ = false;
};

/// One stream of one worker: cut into lines for the console, as it is for its file.
class WorkerStream {
 public:
  WorkerStream(Descriptor pipe, Sink* sink, std::string prefix)
      : pipe_(std::move(pipe)), sink_(sink), prefix_(std::move(prefix)) {
    if (sink_ && sink_->is_terminal()) lines_.keep_picture();
  }
  /// From now on all bytes go to this file too. A file that cannot be made or written costs a warning, once per job.
  void write_to(const std::string& path, Console& console);
  int fd() const { return pipe_.get(); }
  bool is_open() const { return static_cast<bool>(pipe_); }
  bool must_wait() const { return sink_ && sink_->is_full(); }
  /// Reads what there is, at most one buffer. Returns the number of bytes.
  std::size_t read_some(Console& console);
  /// All writers have closed it; the reader then calls `finish`, which closes it here.
  bool has_ended() const { return has_ended_; }
  void finish();
  const std::deque<std::string>& last_lines() const { return lines_.last(); }

 private:
  void pass_on(const std::string& lines);
  void write_file(const char* bytes, std::size_t size, Console& console);
  Descriptor pipe_, file_;
  std::string path_;
  Sink* sink_;
  std::string prefix_;
  Lines lines_;
  bool has_ended_ = false;
};

/// The start of a worker's lines: "[host:rank] ", or what the template says.
std::string line_prefix(const Options& options, const Job& job, int local_rank, const std::string& fallback_template);

}  // namespace fabric::run
