#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

// Starts the program `fabric` for real, looks at what it prints, and looks for processes that it left behind.
namespace run_support {

/// Built with a sanitizer, everything is slower and larger, and limits of memory cannot be set.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

struct Result {
  int code = 0;             // 128 + n when killed by signal n; 124 when it ran out of time
  std::string out, error;   // its two streams
  double seconds = 0;       // until it ended
  long peak_kilobytes = 0;  // of memory, of the launcher or one that it waited for
  std::vector<int> left;    // processes of the job that were still there a second later
  bool said(const std::string& text) const { return error.find(text) != std::string::npos; }
  /// Lines of stdout that contain the text, without their prefix "[host:rank] ", sorted.
  std::vector<std::string> lines(const std::string& text = "") const;
};

/// Checks that nothing of the job is left and that it ended in time.
void require_clean(const Result& result);

using Variables = std::map<std::string, std::string>;

/// One run that goes on while the test does something to it.
class Job {
 public:
  /// Words behind `fabric`; `before` runs in the child just before exec (limits, namespaces, ignored signals).
  explicit Job(const std::vector<std::string>& words, const Variables& variables = {},
               const std::function<void()>& before = nullptr);
  ~Job();
  pid_t pid() const { return pid_; }
  /// Waits until stdout or stderr holds the text so many times. False after 15 s.
  bool wait_for(const std::string& text, int times = 1);
  /// What it wrote, as far as that was read by `wait_for`.
  const std::string& error_so_far() const { return result_.error; }
  void signal(int number) const;
  /// The guardian's pid: the child of the launcher that leads the workers.
  pid_t guardian() const;
  /// Processes of the job, the launcher left out.
  std::vector<int> processes() const;
  Result finish();

 private:
  void drain();
  pid_t pid_ = -1;
  int out_ = -1, error_ = -1;
  std::string mark_;
  double start_ = 0;
  Result result_;
};

Result run(const std::vector<std::string>& words, const Variables& variables = {},
           const std::function<void()>& before = nullptr);
/// `fabric run -n N [flags] sh -c SCRIPT`.
std::vector<std::string> shell(int workers, const std::string& script, const std::vector<std::string>& flags = {});
std::string program();

/// A folder that is removed with everything in it.
class Folder {
 public:
  Folder();
  ~Folder();
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};
std::string read_file(const std::string& path);
/// Seconds of the monotonic clock.
double now();
/// A program that sh runs.
void write_script(const std::string& path, const std::string& text);

}  // namespace run_support
