#include "launcher/run/workers/worker_logs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>

namespace fabric::run {
namespace {

std::string safe_name(std::string text) {
  for (auto& letter : text)
    if (!isalnum(static_cast<unsigned char>(letter)) && letter != '-' && letter != '.') letter = '_';
  return text.substr(0, 100);
}

bool writes_files(const Options& options) { return options.redirects != "0" || options.tee != "0"; }

}  // namespace

LogFolders::LogFolders(const Options& options, const Job& job) {
  if (options.log_dir == "/dev/null") return;
  is_temporary_ = options.log_dir.empty() && !writes_files(options);
  auto parent = options.log_dir;
  if (parent.empty()) {
    parent = process_env()->get_or("TMPDIR", "");
    if (parent.empty()) parent = "/tmp";
  } else {
    if (auto why = why_not_local(parent); !why.empty()) throw ConfigError("--log-dir " + why);
    std::error_code error;
    std::filesystem::create_directories(parent, error);
    if (error) throw ConfigError("--log-dir " + parent + ": " + error.message());
    parent = std::filesystem::absolute(parent, error).string();
  }
  auto name = parent + "/" + (options.log_dir.empty() ? "fabric_" : "") + safe_name(job.id) + "_XXXXXX";
  if (mkdtemp(name.data()))
    root_ = name;
  else if (!is_temporary_)
    throw ConfigError("cannot make " + name + ": " + std::strerror(errno));
}

LogFolders::~LogFolders() {
  std::error_code ignored;
  if (is_temporary_ && !root_.empty()) std::filesystem::remove_all(root_, ignored);
}

std::string LogFolders::of_worker(int attempt, int local_rank) const {
  if (root_.empty()) return "";
  auto folder = root_ + "/attempt_" + std::to_string(attempt);
  mkdir(folder.c_str(), 0755);
  folder += "/" + std::to_string(local_rank);
  return mkdir(folder.c_str(), 0755) == 0 || errno == EEXIST ? folder : "";
}

void WorkerStream::write_to(const std::string& path, Console& console) {
  path_ = path;
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  if (fd < 0) console.say("warning: cannot make " + path + ": " + std::strerror(errno) + "; its lines are not kept");
  file_ = Descriptor(fd);
}

void WorkerStream::write_file(const char* bytes, std::size_t size, Console& console) {
  while (file_ && size > 0) {
    ssize_t done = write(file_.get(), bytes, size);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      static bool warned = false;
      if (!warned)
        console.say("warning: cannot write " + path_ + ": " + std::strerror(errno) + "; the run goes on without it");
      warned = true;
      file_.reset();
      return;
    }
    bytes += done;
    size -= static_cast<std::size_t>(done);
  }
}

std::size_t WorkerStream::read_some(Console& console) {
  static char buffer[64 * 1024];
  ssize_t size = read(pipe_.get(), buffer, sizeof buffer);
  if (size < 0) return 0;
  has_ended_ = size == 0;
  if (has_ended_) return 0;
  write_file(buffer, static_cast<std::size_t>(size), console);
  std::string lines;
  lines_.feed({buffer, static_cast<std::size_t>(size)}, prefix_, lines);
  pass_on(lines);
  return static_cast<std::size_t>(size);
}

void WorkerStream::pass_on(const std::string& lines) {
  if (!sink_) return;
  auto picture = lines_.picture();
  // First, lest a line that has ended is drawn once more below itself.
  if (picture.empty()) sink_->show(this, "");
  sink_->add(lines);
  if (!picture.empty()) sink_->show(this, prefix_ + picture);
}

void WorkerStream::finish() {
  std::string lines;
  lines_.finish(prefix_, lines);
  pass_on(lines);
  pipe_.reset();
  file_.reset();
}

std::string line_prefix(const Options& options, const Job& job, int local_rank, const std::string& fallback_template) {
  auto rank = std::to_string(job.first_rank + local_rank);
  auto text = options.prefix_template.empty() ? fallback_template : options.prefix_template;
  if (text.empty()) return "[" + job.host + ":" + rank + "] ";
  const std::pair<const char*, std::string> names[] = {
      {"role_name", job.role}, {"local_rank", std::to_string(local_rank)}, {"rank", rank}, {"hostname", job.host}};
  for (const auto& [name, value] : names)
    for (std::string mark : {"${" + std::string(name) + "}", "$" + std::string(name)})
      for (auto at = text.find(mark); at != std::string::npos; at = text.find(mark, at + value.size()))
        text.replace(at, mark.size(), value);
  return text;
}

}  // namespace fabric::run
