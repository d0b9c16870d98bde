#pragma once

#include <deque>
#include <string>
#include <string_view>

namespace fabric {

/// Cuts a stream into whole lines and remembers the last ones.
class Lines {
 public:
  static constexpr std::size_t kKept = 20;
  /// A longer line is passed on in pieces of this size.
  static constexpr std::size_t kLongest = 64 * 1024;

  /// Appends each line that is complete now to `out`, as prefix + line + newline.
  void feed(std::string_view bytes, const std::string& prefix, std::string& out);
  /// The stream has ended: an unfinished line counts as one.
  void finish(const std::string& prefix, std::string& out);
  const std::deque<std::string>& last() const { return last_; }

 private:
  void add(std::string line, const std::string& prefix, std::string& out);
  std::string partial_;
  std::deque<std::string> last_;
};

}  // namespace fabric
