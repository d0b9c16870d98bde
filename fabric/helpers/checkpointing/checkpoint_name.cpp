#include <fabric/helpers/checkpointing/checkpoint_name_internal.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string_view>

#include <fabric/base/error.h>

namespace fabric {
namespace {

/// How one number is written; `type` 0 is Python's default.
struct NumberFormat {
  bool plus = false;
  bool zeros = false;
  int width = 0;
  int precision = -1;
  char type = 0;
};

[[noreturn]] void refuse(const std::string& pattern, const std::string& why) {
  throw ConfigError("the file name '" + pattern + "' " + why +
                    ". Write {name} or {name:format}, such as '{epoch:02d}-{val_loss:.3f}'");
}

NumberFormat parse_format(const std::string& pattern, std::string_view text) {
  NumberFormat format;
  const std::string whole(text);
  auto number = [&](int& out) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (error != std::errc() || out > 200) refuse(pattern, "has the format '" + whole + "', whose number is no size");
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  };
  if (text.starts_with('+')) format.plus = true, text.remove_prefix(1);
  if (text.starts_with('0')) format.zeros = true, text.remove_prefix(1);
  if (!text.empty() && text[0] >= '1' && text[0] <= '9') number(format.width);
  if (text.starts_with('.')) text.remove_prefix(1), number(format.precision);
  if (!text.empty() && std::string_view("deEfFgG%").find(text[0]) != std::string_view::npos)
    format.type = text[0], text.remove_prefix(1);
  if (!text.empty())
    refuse(pattern, "has the format '" + whole + "', of which '" + std::string(text) +
                        "' is not understood; allowed are [+][0][width][.precision] and one of d e f g %");
  if (format.type == 'd' && format.precision >= 0)
    refuse(pattern, "has the format '" + whole + "': whole numbers (d) have no precision");
  return format;
}

std::string printed(const NumberFormat& format, char type, int precision, double value) {
  const std::string code = std::string("%") + (format.plus ? "+" : "") + (format.zeros ? "0" : "") + "*.*" + type;
  char buffer[640];  // the largest double has 309 digits before the point, and at most 200 come after it
  int length = std::snprintf(buffer, sizeof buffer, code.c_str(), format.width, precision, value);
  return std::string(buffer, static_cast<std::size_t>(length));
}

std::string padded(const NumberFormat& format, std::string digits) {
  if (format.plus && !digits.starts_with('-')) digits.insert(0, "+");
  auto width = static_cast<std::size_t>(format.width);
  if (digits.size() >= width) return digits;
  bool sign = digits[0] == '-' || digits[0] == '+';
  digits.insert(format.zeros && sign ? 1 : 0, width - digits.size(), format.zeros ? '0' : ' ');
  return digits;
}

// The fewest digits that give the same number, as Python prints it: 0.25, 3.0, 1e-05.
std::string shortest_value(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  double size = std::abs(value);
  bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  auto end = std::to_chars(buffer, buffer + sizeof buffer, value,
                           plain ? std::chars_format::fixed : std::chars_format::scientific)
                 .ptr;
  std::string text(buffer, end);
  if (plain && text.find('.') == text.npos) text += ".0";
  return text;
}

std::string text_of(const NumberFormat& format, double value, bool whole) {
  if (format.type == 'd' || (whole && format.type == 0 && format.precision < 0)) {
    if (!std::isfinite(value)) return shortest_value(value);
    return padded(format, std::to_string(std::llround(value)));
  }
  if (format.type == 0 && format.precision < 0) return padded(format, shortest_value(value));
  if (format.type == '%') return printed(format, 'f', format.precision < 0 ? 6 : format.precision, value * 100) + "%";
  return printed(format, format.type ? format.type : 'g', format.precision < 0 ? 6 : format.precision, value);
}

using UseField = std::function<std::string(const std::string& name, const NumberFormat& format)>;

std::string replace_fields(const std::string& pattern, const UseField& use) {
  std::string out;
  for (std::size_t at = 0; at < pattern.size();) {
    if (pattern[at] == '}') refuse(pattern, "has a '}' without a '{'");
    if (pattern[at] != '{') {
      out += pattern[at++];
      continue;
    }
    std::size_t end = pattern.find_first_of("{}", at + 1);
    if (end == pattern.npos || pattern[end] == '{') refuse(pattern, "has a '{' without a '}'");
    std::string name = pattern.substr(at + 1, end - at - 1), format;
    if (auto colon = name.find(':'); colon != name.npos) {
      format = name.substr(colon + 1);
      name.resize(colon);
    }
    if (name.empty()) refuse(pattern, "has braces without a name");
    out += use(name, parse_format(pattern, format));
    at = end + 1;
  }
  return out;
}

}  // namespace

std::string format_checkpoint_name(const std::string& pattern, const Metrics& metrics, std::int64_t epoch,
                                   std::int64_t step, bool insert_names) {
  return replace_fields(pattern, [&](const std::string& name, const NumberFormat& format) {
    bool place = name == "epoch" || name == "step";
    double value = name == "epoch" ? static_cast<double>(epoch) : name == "step" ? static_cast<double>(step) : 0.0;
    auto metric = metrics.find(name);
    if (metric != metrics.end()) value = metric->second;
    bool whole = place || metric == metrics.end();
    return (insert_names ? name + "=" : "") + text_of(format, value, whole);
  });
}

void check_checkpoint_name(const std::string& pattern) {
  std::string example = replace_fields(pattern, [](const std::string& name, const NumberFormat&) { return name; });
  if (example.find('\0') != example.npos) refuse(pattern, "holds a zero byte");
  if (std::filesystem::path(pattern).is_absolute())
    throw ConfigError("the file name '" + pattern + "' must be relative to the folder; set dirpath to '" +
                      std::filesystem::path(pattern).parent_path().string() + "'");
  if (!std::filesystem::path(example).has_filename()) refuse(pattern, "names a folder, not a file");
}

}  // namespace fabric
