#include "launcher/os/visible.h"

namespace fabric {
namespace {

bool is_continuation(unsigned char byte) { return (byte & 0xc0) == 0x80; }

// Bytes of the character at the beginning if it is UTF-8 and has no effect on a terminal; 0 if not.
std::size_t harmless_size(std::string_view text) {
  auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  auto first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  std::size_t size = first >= 0xf0 && first < 0xf5 ? 4 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xc2 ? 2 : 0;
  if (size == 2 && first >= 0xe0) return 0;
  for (std::size_t i = 1; i < size; ++i)
    if (!is_continuation(static_cast<unsigned char>(byte(i)))) return 0;
  // C1 controls, and the marks that change the direction of what follows.
  bool is_c1 = first == 0xc2 && byte(1) < 0xa0;
  bool turns = first == 0xe2 &&
               ((byte(1) == 0x80 && ((byte(2) >= 0xa8 && byte(2) <= 0xae) || byte(2) == 0x8e || byte(2) == 0x8f)) ||
                (byte(1) == 0x81 && byte(2) >= 0xa6 && byte(2) <= 0xa9));
  return is_c1 || turns ? 0 : size;
}

std::string escape(unsigned char byte) {
  if (byte == '\n') return "\\n";
  if (byte == '\t') return "\\t";
  if (byte == '\r') return "\\r";
  return std::string("\\x") + "0123456789abcdef"[byte >> 4] + "0123456789abcdef"[byte & 15];
}

std::string show(std::string_view text, std::string_view kept) {
  std::string shown;
  shown.reserve(text.size());
  while (!text.empty()) {
    auto size = kept.find(text[0]) != std::string_view::npos ? 1 : harmless_size(text);
    if (size == 0)
      shown += escape(static_cast<unsigned char>(text[0]));
    else
      shown += text.substr(0, size);
    text.remove_prefix(size == 0 ? 1 : size);
  }
  return shown;
}

}  // namespace

std::string visible(std::string_view text) { return show(text, ""); }

std::string visible_lines(std::string_view text) { return show(text, "\n\t"); }

}  // namespace fabric
