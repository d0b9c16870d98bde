#pragma once

#include <deque>
#include <string>
#include <string_view>

namespace fabric {

/// Cuts a stream into whole lines and remembers the last ones. Progress that is written over itself ('\r') is passed on
/// as it comes, or, for a terminal, kept as the picture that the line shows now.
class Lines {
 public:
  static constexpr std::size_t kKept = 20;
  /// A longer line is passed on in pieces of this size.
  static constexpr std::size_t kLongest = 64 * 1024;

  /// From now on text that ends with '\r' is no output but the `picture`.
  void keep_picture() { keeps_picture_ = true; }
  /// Appends each line that is complete now to `out`, as prefix + line + newline, and each text that the next one is
  /// written over, as prefix + text + '\r'.
  void feed(std::string_view bytes, const std::string& prefix, std::string& out);
  /// The stream has ended: an unfinished line counts as one.
  void finish(const std::string& prefix, std::string& out);
  /// What the unfinished line shows, if it was written over itself; else empty.
  std::string picture() const;
  const std::deque<std::string>& last() const { return last_; }

 private:
  void add(std::string line, const std::string& prefix, std::string& out);
  void start_afresh();
  void take_returns(const std::string& prefix, std::string& out);
  std::string partial_;      // of the line, behind the last return
  std::string overwritten_;  // what stood before that, which is seen until something is written over it
  bool keeps_picture_ = false, has_returned_ = false;
  std::deque<std::string> last_;
};

}  // namespace fabric
