#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include <fabric/base/error.h>

namespace fabric::checkpoint {

/// Reads little-endian numbers and runs of bytes; running off the end throws CheckpointCorrupt.
class ByteCursor {
 public:
  ByteCursor(std::string_view bytes, const char* what) : bytes_(bytes), what_(what) {}

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_)
      throw CheckpointCorrupt(std::string(what_) + " ends too early: " + std::to_string(count) +
                              " bytes wanted at byte " + std::to_string(at_) + " of " + std::to_string(bytes_.size()));
    auto out = bytes_.substr(at_, count);
    at_ += count;
    return out;
  }
  template <class Number>
  Number number() {
    Number out;
    std::memcpy(&out, take(sizeof out).data(), sizeof out);
    return out;
  }
  std::string_view line() {
    auto end = bytes_.find('\n', at_);
    if (end == bytes_.npos) throw CheckpointCorrupt(std::string(what_) + " has a line without an end");
    auto out = take(end - at_);
    ++at_;
    return out;
  }
  std::size_t left() const { return bytes_.size() - at_; }
  std::size_t position() const { return at_; }

 private:
  std::string_view bytes_;
  const char* what_;
  std::size_t at_ = 0;
};

}  // namespace fabric::checkpoint
