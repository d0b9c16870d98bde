#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "launcher/os/descriptor.h"

namespace fabric::run {

/// Our stdout or stderr: takes whole lines, and writes them as fast as the reader takes them. A reader that is gone
/// loses them, and nobody else is hurt. A terminal shows, below the lines, a last one that is drawn over itself: the
/// progress of a worker.
class Sink {
 public:
  explicit Sink(int fd);
  /// Whole lines.
  void add(std::string_view lines);
  bool is_terminal() const { return is_terminal_; }
  /// Draws the last line, in place of what it showed; `owner` tells workers apart. Empty: it goes, if it was this
  /// owner's.
  void show(const void* owner, const std::string& picture);
  /// Whoever feeds it has to wait.
  bool is_full() const { return buffer_.size() - written_ > kLimit; }
  bool is_empty() const { return written_ == buffer_.size(); }
  int fd() const { return fd_; }
  /// False for a file, which is always ready.
  bool can_poll() const { return can_poll_; }
  /// Writes what can be written without waiting. True when anything was.
  bool write_some();
  /// errno of the write that ended it; 0: there was none, or its reader has closed it.
  int error() const { return error_; }
  /// Waits for the reader, at most so long.
  void flush(std::chrono::milliseconds limit);

 private:
  static constexpr std::size_t kLimit = 1024 * 1024;
  int fd_;
  Descriptor own_;
  bool can_poll_ = true, is_terminal_ = false;
  std::string picture_;  // as it is drawn
  const void* painter_ = nullptr;
  bool is_dead_ = false;
  int error_ = 0;
  std::string buffer_;
  std::size_t written_ = 0;
};

/// Both streams of the launcher; one sink serves both when they are the same file, so that lines are not torn.
class Console {
 public:
  Console();
  Sink& out() { return out_; }
  Sink& error() { return is_same_ ? out_ : error_; }
  /// A line of the launcher itself, on stderr: "fabric: text".
  void say(const std::string& text);
  /// Whole lines of a report. What others said in them cannot move the cursor.
  void say_lines(const std::string& text);
  /// Writes what both take without waiting. That stdout cannot be written is said on stderr, once.
  void write_some();
  void flush(std::chrono::milliseconds limit);
  /// All that was said is written, or lost with its reader.
  bool is_empty() { return out().is_empty() && error().is_empty(); }
  /// Columns that a worker's progress has on the terminal where its stderr is shown; 0: it is shown on none.
  int columns();

 private:
  Sink out_, error_;
  bool is_same_, has_complained_ = false;
};

}  // namespace fabric::run
