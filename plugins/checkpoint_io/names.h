#pragma once

#include <cstddef>
#include <string>

#include <fabric/base/error.h>

namespace fabric::checkpoint {

inline constexpr std::size_t kShownName = 200;

/// Of a file in the folder at hand, not a path out of it.
inline bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos && name.find('\0') == name.npos;
}

/// Errors of `work` begin with `where`; their class stays.
template <class Work>
auto within(const std::string& where, Work&& work) {
  try {
    return work();
  } catch (const CheckpointCorrupt& error) {
    throw CheckpointCorrupt(where + ": " + error.what());
  } catch (const CheckpointError& error) {
    throw CheckpointError(where + ": " + error.what());
  }
}

/// Names for an error's text: the first of them, and how many more there are.
class NameList {
 public:
  void add(const std::string& name) {
    if (count_++ < kMost) text_ += (text_.empty() ? "'" : ", '") + name.substr(0, kShownName) + "'";
  }
  bool empty() const { return count_ == 0; }
  std::string text() const {
    return count_ > kMost ? text_ + " and " + std::to_string(count_ - kMost) + " more" : text_;
  }

 private:
  static constexpr std::size_t kMost = 20;
  std::string text_;
  std::size_t count_ = 0;
};

}  // namespace fabric::checkpoint
