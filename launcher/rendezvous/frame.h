#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <fabric/base/error.h>
#include <fabric/base/tree.h>

#include "launcher/rendezvous/secret.h"

namespace fabric::rendezvous {

/// Bytes that are no frame of ours, or a message that does not say what it must. The connection is of no more use.
class FrameError : public LaunchError {
 public:
  using LaunchError::LaunchError;
};

/// The longest message.
inline constexpr std::size_t kMemberLimit = std::size_t{8} << 20;

/// One message on the wire: its length in four bytes, the most significant first; its MAC, 32 bytes over how many
/// messages went this way before it (eight bytes, the most significant first) and the text; and the text.
std::string seal(const Key& key, std::uint64_t number, std::string_view text);

/// Makes the stream of bytes that goes one way of a connection.
class FrameWriter {
 public:
  explicit FrameWriter(const Key& key) : key_(key) {}
  /// Throws FrameError for a message longer than kMemberLimit.
  std::string encode(Tree message);

 private:
  Key key_;
  std::uint64_t count_ = 0;
};

/// Cuts such a stream into messages. What was changed, repeated, reordered or left out on the way is a FrameError.
class FrameReader {
 public:
  explicit FrameReader(const Key& key) : key_(key) {}
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  /// The next message; nothing when it has not come as a whole. Throws FrameError.
  std::optional<Tree> next();

 private:
  Key key_;
  std::uint64_t count_ = 0;
  std::string buffer_;
};

}  // namespace fabric::rendezvous
