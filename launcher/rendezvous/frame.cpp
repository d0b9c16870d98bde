#include "launcher/rendezvous/frame.h"

#include <fabric/base/tree_io.h>

#include "launcher/os/utf8.h"

namespace fabric::rendezvous {
namespace {

constexpr std::string_view kMagic = "FAB1";
constexpr std::size_t kHeader = 8;
constexpr ReadLimits kJsonLimits{.bytes = kMemberLimit, .depth = 8, .nodes = std::size_t{1} << 20};

}  // namespace

std::string encode_frame(Tree message) {
  make_utf8(message);
  auto text = write_json(message);
  if (text.size() > kMemberLimit)
    throw FrameError("a message of " + std::to_string(text.size()) + " bytes is too long to be sent");
  std::string frame(kMagic);
  for (int shift = 24; shift >= 0; shift -= 8) frame += static_cast<char>(text.size() >> shift);
  return frame + text;
}

std::optional<Tree> FrameReader::next() {
  auto known = std::min(buffer_.size(), kMagic.size());
  if (std::string_view(buffer_).substr(0, known) != kMagic.substr(0, known))
    throw FrameError("these are no frames of fabric run");
  if (buffer_.size() < kHeader) return std::nullopt;
  std::size_t length = 0;
  for (std::size_t i = kMagic.size(); i < kHeader; ++i) length = length << 8 | static_cast<unsigned char>(buffer_[i]);
  if (length > limit_)
    throw FrameError("a message of " + std::to_string(length) + " bytes is longer than " + std::to_string(limit_));
  if (buffer_.size() < kHeader + length) return std::nullopt;
  Tree message;
  try {
    message = read_json(std::string_view(buffer_).substr(kHeader, length), "message", kJsonLimits);
  } catch (const Error& error) {
    throw FrameError(error.what());
  }
  if (!message.is_map()) throw FrameError("a message is no map");
  buffer_.erase(0, kHeader + length);
  return message;
}

}  // namespace fabric::rendezvous
