#include "launcher/run/hosts/packet.h"

#include <charconv>

namespace fabric::run {
namespace {

constexpr std::size_t kLargest = 64 << 20, kLongestNumber = 9;

enum class Found { whole, part, nonsense };

/// One `LENGTH:BYTES,` from `at` on, which moves behind it.
Found take_text(std::string_view bytes, std::size_t& at, std::string_view& text) {
  auto rest = bytes.substr(at);
  auto colon = rest.substr(0, kLongestNumber + 1).find(':');
  bool are_digits = rest.substr(0, std::min(colon, rest.size())).find_first_not_of("0123456789") == rest.npos;
  if (colon == rest.npos) return are_digits && rest.size() <= kLongestNumber ? Found::part : Found::nonsense;
  if (!are_digits || colon == 0) return Found::nonsense;
  std::size_t size = 0;
  std::from_chars(rest.data(), rest.data() + colon, size);
  if (size > kLargest) return Found::nonsense;
  if (rest.size() < colon + 1 + size + 1) return Found::part;
  if (rest[colon + 1 + size] != ',') return Found::nonsense;
  text = rest.substr(colon + 1, size);
  at += colon + size + 2;
  return Found::whole;
}

int digit_of(char letter) {
  if (letter >= '0' && letter <= '9') return letter - '0';
  return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

}  // namespace

std::string pack(const Packet& packet) {
  std::string bytes;
  for (const auto& text : packet) bytes += std::to_string(text.size()) + ":" + text + ",";
  return bytes;
}

std::optional<Packet> unpack(std::string_view bytes) {
  Packet packet;
  std::string_view text;
  for (std::size_t at = 0; at < bytes.size();) {
    if (take_text(bytes, at, text) != Found::whole) return std::nullopt;
    packet.emplace_back(text);
  }
  return packet;
}

std::string framed(const Packet& packet) { return pack({pack(packet)}); }

std::string packet_line(const std::string& mark, const Packet& packet) {
  auto line = mark + " ";
  for (unsigned char byte : pack(packet)) line += "0123456789abcdef"[byte >> 4], line += "0123456789abcdef"[byte & 15];
  return line + "\n";
}

std::optional<Packet> read_packet_line(const std::string& mark, std::string_view line) {
  if (mark.empty() || !line.starts_with(mark + " ")) return std::nullopt;
  line.remove_prefix(mark.size() + 1);
  std::string bytes;
  for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
    int high = digit_of(line[i]), low = digit_of(line[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes += static_cast<char>(high * 16 + low);
  }
  return unpack(bytes);
}

std::optional<Packet> PacketReader::next() {
  std::string_view text;
  std::size_t at = 0;
  if (is_broken_ || bytes_.empty()) return std::nullopt;
  auto found = take_text(bytes_, at, text);
  if (found == Found::part) return std::nullopt;
  auto packet = found == Found::whole ? unpack(text) : std::nullopt;
  if (!packet) is_broken_ = true;
  bytes_.erase(0, at);
  return packet;
}

}  // namespace fabric::run
