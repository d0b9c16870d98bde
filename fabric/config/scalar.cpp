#include "fabric/config/scalar_internal.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include <fabric/base/error.h>

namespace fabric::detail {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

// [-+]? ( [0-9]+ ( . [0-9]* )? | . [0-9]+ ) ( [eE] [-+]? [0-9]+ )?
bool looks_like_float(std::string_view text) {
  std::size_t i = 0, digits = 0;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  for (; i < text.size() && is_digit(text[i]); ++i) ++digits;
  if (i < text.size() && text[i] == '.')
    for (++i; i < text.size() && is_digit(text[i]); ++i) ++digits;
  if (digits == 0) return false;
  if (i == text.size()) return true;
  if (text[i] != 'e' && text[i] != 'E') return false;
  ++i;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  return i < text.size() && std::all_of(text.begin() + i, text.end(), is_digit);
}

// True when `text` is an integer; one that does not fit stays text.
bool resolve_integer(std::string_view text, Tree& out) {
  std::string_view digits = text;
  int base = 10;
  if (digits.starts_with("0x") || digits.starts_with("0o")) {
    base = digits[1] == 'x' ? 16 : 8;
    digits.remove_prefix(2);
    if (digits.empty() || digits[0] == '-') return false;
  } else if (digits.starts_with('+')) {
    digits.remove_prefix(1);
    if (digits.empty() || !is_digit(digits[0])) return false;
  }
  std::int64_t value = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error == std::errc::invalid_argument || end != digits.data() + digits.size()) return false;
  if (error == std::errc::result_out_of_range)
    out = text;
  else
    out = value;
  return true;
}

}  // namespace

std::string float_text(double value) {
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  // The point makes it a float for readers of YAML 1.1 as well.
  if (text.find('.') == std::string::npos) text.insert(std::min(text.find('e'), text.size()), ".0");
  return text;
}

bool parse_float(std::string_view text, double& value) {
  if (!looks_like_float(text)) return false;
  if (text.starts_with('+')) text.remove_prefix(1);
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

Tree resolve_plain(std::string_view text) {
  if (is_one_of(text, {"", "~", "null", "Null", "NULL"})) return {};
  if (is_one_of(text, {"true", "True", "TRUE"})) return true;
  if (is_one_of(text, {"false", "False", "FALSE"})) return false;
  Tree number;
  if (resolve_integer(text, number)) return number;
  double value = 0;
  if (parse_float(text, value)) return value;
  std::string_view unsigned_text = text;
  bool negative = text[0] == '-';
  if (negative || text[0] == '+') unsigned_text.remove_prefix(1);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (is_one_of(unsigned_text, {".inf", ".Inf", ".INF"})) return negative ? -kInfinity : kInfinity;
  if (is_one_of(text, {".nan", ".NaN", ".NAN"})) return std::numeric_limits<double>::quiet_NaN();
  return text;
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    auto byte = [&](std::size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
    unsigned first = byte(0);
    if (first < 0x80) {
      ++i;
      continue;
    }
    std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4) return i;
    for (std::size_t k = 1; k < length; ++k)
      if ((byte(k) & 0xc0) != 0x80) return i;
    // Longer forms than needed, surrogates, and beyond U+10FFFF.
    unsigned second = byte(1);
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
        (first == 0xf4 && second > 0x8f))
      return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string quoted(std::string_view text) {
  if (find_invalid_utf8(text) != std::string_view::npos)
    throw ConfigError("the string " + shown(text) + " is not UTF-8 and cannot be written; write such bytes as digits");
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  auto escape = [&](unsigned code) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += kHex[(code >> shift) & 15];
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    auto next = [&](std::size_t k) { return static_cast<unsigned char>(text[i + k]); };
    if (c == '"' || c == '\\')
      (out += '\\') += static_cast<char>(c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\r')
      out += "\\r";
    else if (c < 0x20 || c == 0x7f)
      escape(c);
    // What YAML takes for a line break or does not print: C1 controls, U+2028 and U+2029, U+FEFF, U+FFFE and U+FFFF.
    else if (c == 0xc2 && next(1) < 0xa0)
      escape(next(1)), ++i;
    else if (c == 0xe2 && next(1) == 0x80 && (next(2) == 0xa8 || next(2) == 0xa9))
      escape(0x2000 + next(2) - 0x80), i += 2;
    else if (c == 0xef && next(1) == 0xbb && next(2) == 0xbf)
      escape(0xfeff), i += 2;
    else if (c == 0xef && next(1) == 0xbf && next(2) >= 0xbe)
      escape(0xffc0 + (next(2) & 0x3f)), i += 2;
    else
      out += static_cast<char>(c);
  }
  return out + '"';
}

std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  std::string out = "'";
  for (char c : text.substr(0, kLongest)) {
    auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte >= 0x7f ? '?' : c;
  }
  return out + (text.size() > kLongest ? "…'" : "'");
}

int line_of(std::string_view text, std::size_t offset) {
  return 1 + static_cast<int>(std::count(text.begin(), text.begin() + std::min(offset, text.size()), '\n'));
}

}  // namespace fabric::detail
