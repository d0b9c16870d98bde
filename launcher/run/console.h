#pragma once

#include <chrono>
#include <string>

#include "launcher/os/descriptor.h"

namespace fabric::run {

/// Our stdout or stderr: takes whole lines, and writes them as fast as the reader takes them. A reader that is gone
/// loses them, and nobody else is hurt.
class Sink {
 public:
  explicit Sink(int fd);
  /// Lines for it are appended here.
  std::string& buffer() { return buffer_; }
  /// Whoever feeds it has to wait.
  bool is_full() const { return buffer_.size() - written_ > kLimit; }
  bool is_empty() const { return written_ == buffer_.size(); }
  int fd() const { return fd_; }
  /// False for a file, which is always ready.
  bool can_poll() const { return can_poll_; }
  /// Writes what can be written without waiting. True when anything was.
  bool write_some();
  /// Waits for the reader, at most so long.
  void flush(std::chrono::milliseconds limit);

 private:
  static constexpr std::size_t kLimit = 1024 * 1024;
  int fd_;
  Descriptor own_;
  bool can_poll_ = true;
  bool is_dead_ = false;
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
  void flush(std::chrono::milliseconds limit);

 private:
  Sink out_, error_;
  bool is_same_;
};

}  // namespace fabric::run
