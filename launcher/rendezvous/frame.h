#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <fabric/base/error.h>
#include <fabric/base/tree.h>

namespace fabric::rendezvous {

/// Bytes that are no frame of ours, or a message that does not say what it must. The connection is of no more use.
class FrameError : public LaunchError {
 public:
  using LaunchError::LaunchError;
};

/// The longest message before the other side has shown the job's token, and after.
inline constexpr std::size_t kStrangerLimit = 16 * 1024, kMemberLimit = std::size_t{8} << 20;

/// One message on the wire: "FAB1", its length in four bytes, the most significant first, and a JSON map.
/// Throws FrameError for one longer than kMemberLimit.
std::string encode_frame(Tree message);

/// Cuts a stream of bytes into messages.
class FrameReader {
 public:
  void set_limit(std::size_t bytes) { limit_ = bytes; }
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  /// The next message; nothing when it has not come as a whole. Throws FrameError.
  std::optional<Tree> next();

 private:
  std::string buffer_;
  std::size_t limit_ = kStrangerLimit;
};

}  // namespace fabric::rendezvous
