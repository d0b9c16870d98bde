#include "launcher/rendezvous/frame.h"

#include <fabric/base/tree_io.h>

#include "launcher/os/utf8.h"

namespace fabric::rendezvous {
namespace {

constexpr std::size_t kLength = 4, kMac = std::tuple_size_v<Key>, kHeader = kLength + kMac;
constexpr ReadLimits kJsonLimits{.bytes = kMemberLimit, .depth = 8, .nodes = std::size_t{1} << 20};

std::string big_endian(std::uint64_t number, std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = size; i-- > 0; number >>= 8) bytes[i] = static_cast<char>(number);
  return bytes;
}

Key mac_of_frame(const Key& key, std::uint64_t number, std::string_view text) {
  return mac(as_text(key), {big_endian(number, 8), text});
}

}  // namespace

std::string seal(const Key& key, std::uint64_t number, std::string_view text) {
  auto frame = big_endian(text.size(), kLength);
  return frame.append(as_text(mac_of_frame(key, number, text))).append(text);
}

std::string FrameWriter::encode(Tree message) {
  make_utf8(message);
  auto text = write_json(message);
  if (text.size() > kMemberLimit)
    throw FrameError("a message of " + std::to_string(text.size()) + " bytes is too long to be sent");
  return seal(key_, count_++, text);
}

std::optional<Tree> FrameReader::next() {
  if (buffer_.size() < kLength) return std::nullopt;
  std::size_t length = 0;
  for (std::size_t i = 0; i < kLength; ++i) length = length << 8 | static_cast<unsigned char>(buffer_[i]);
  if (length > kMemberLimit)
    throw FrameError("a message of " + std::to_string(length) + " bytes is longer than " +
                     std::to_string(kMemberLimit));
  if (buffer_.size() < kHeader + length) return std::nullopt;
  auto text = std::string_view(buffer_).substr(kHeader, length);
  if (!is_same(mac_of_frame(key_, count_, text), std::string_view(buffer_).substr(kLength, kMac)))
    throw FrameError("a message was changed on its way");
  ++count_;
  Tree message;
  try {
    message = read_json(text, "message", kJsonLimits);
  } catch (const Error& error) {
    throw FrameError(error.what());
  }
  if (!message.is_map()) throw FrameError("a message is no map");
  buffer_.erase(0, kHeader + length);
  return message;
}

}  // namespace fabric::rendezvous
