#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <unordered_set>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "fabric/config/scalar_internal.h"

// Written by hand, since it must read and write NaN as Python does (nlohmann-json refuses it), keep the order of keys,
// refuse keys given twice, and know the line of every value.
namespace fabric {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class JsonReader {
 public:
  JsonReader(std::string_view text, const std::string& source, const ReadLimits& limits, TreeLines* lines)
      : text_(text), source_(source), limits_(limits), lines_(lines) {}

  Tree read() {
    if (text_.size() > limits_.bytes)
      throw ConfigError(source_ + ": " + std::to_string(text_.size()) + " bytes; at most " +
                        std::to_string(limits_.bytes) + " are read");
    if (std::size_t bad = detail::find_invalid_utf8(text_); bad != text_.npos) fail_at(bad, "not UTF-8");
    if (text_.starts_with("\xef\xbb\xbf")) at_ = 3;
    Tree tree = value("", 0);
    skip_space();
    if (at_ < text_.size()) fail("text after the end of the value");
    return tree;
  }

 private:
  [[noreturn]] void fail_at(std::size_t offset, const std::string& what) const {
    throw ConfigError(source_ + ":" + std::to_string(detail::line_of(text_, offset)) + ": " + what);
  }
  [[noreturn]] void fail(const std::string& what) const { fail_at(at_, what); }

  void skip_space() {
    for (; at_ < text_.size(); ++at_) {
      if (text_[at_] == '\n')
        ++line_;
      else if (text_[at_] != ' ' && text_[at_] != '\t' && text_[at_] != '\r')
        break;
    }
  }
  char peek() {
    skip_space();
    if (at_ == text_.size()) fail("the text ends too early");
    return text_[at_];
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  bool accept_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Tree value(const std::string& path, int depth) {
    if (depth > limits_.depth) fail("nested deeper than " + std::to_string(limits_.depth) + " levels");
    if (++nodes_ > limits_.nodes) fail("more than " + std::to_string(limits_.nodes) + " values");
    const char c = peek();
    if (lines_ && !path.empty()) lines_->emplace(path, line_);
    if (c == '{') return map(path, depth);
    if (c == '[') return list(path, depth);
    if (c == '"') return string();
    if (accept_word("true")) return true;
    if (accept_word("false")) return false;
    if (accept_word("null")) return {};
    if (accept_word("NaN")) return std::numeric_limits<double>::quiet_NaN();
    if (accept_word("Infinity")) return kInfinity;
    if (accept_word("-Infinity")) return -kInfinity;
    return number();
  }

  std::string path_below(const std::string& path, std::string_view key) const {
    return lines_ ? detail::below(path, key) : std::string();
  }

  Tree map(const std::string& path, int depth) {
    ++at_;
    Tree::Map::Entries entries;
    std::unordered_set<std::string> keys;
    if (accept('}')) return Tree::Map();
    do {
      if (peek() != '"') fail("expected a key in double quotes");
      const std::size_t start = at_;
      std::string key = string();
      if (!keys.insert(key).second) fail_at(start, "the key " + detail::shown(key) + " is given twice");
      if (!accept(':')) fail("expected ':' after the key " + detail::shown(key));
      Tree item = value(path_below(path, key), depth + 1);
      entries.emplace_back(std::move(key), std::move(item));
    } while (accept(','));
    if (!accept('}')) fail("expected ',' or '}' in a map");
    return Tree::Map(std::move(entries));
  }

  Tree list(const std::string& path, int depth) {
    ++at_;
    Tree::List items;
    if (accept(']')) return items;
    do {
      items.push_back(value(path_below(path, std::to_string(items.size())), depth + 1));
    } while (accept(','));
    if (!accept(']')) fail("expected ',' or ']' in a list");
    return items;
  }

  std::string string() {
    std::string out;
    for (++at_;;) {
      const std::size_t start = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<unsigned char>(text_[at_]) >= 0x20)
        ++at_;
      out.append(text_, start, at_ - start);
      if (at_ == text_.size()) fail("a string without an end");
      const char c = text_[at_];
      if (c != '"' && c != '\\') fail("a control character in a string; write it as \\u00XX");
      ++at_;
      if (c == '"') return out;
      escape(out);
    }
  }

  void escape(std::string& out) {
    static constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    if (at_ == text_.size()) fail("a string without an end");
    const char c = text_[at_++];
    if (auto known = kLetters.find(c); known != kLetters.npos) {
      out += kMeanings[known];
      return;
    }
    if (c != 'u') fail("an unknown escape in a string");
    unsigned code = four_digits();
    if (code >= 0xdc00 && code <= 0xdfff) fail("half of a surrogate pair");
    if (code >= 0xd800 && code <= 0xdbff) {
      if (!accept_word("\\u")) fail("half of a surrogate pair");
      const unsigned low = four_digits();
      if (low < 0xdc00 || low > 0xdfff) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(out, code);
  }

  unsigned four_digits() {
    unsigned code = 0;
    const char* start = text_.data() + at_;
    if (at_ + 4 > text_.size() || std::from_chars(start, start + 4, code, 16).ptr != start + 4)
      fail("\\u must be followed by four hexadecimal digits");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& out, unsigned code) {
    auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xc0 | (code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      out += static_cast<char>(0xe0 | (code >> 12));
      tail(6), tail(0);
    } else {
      out += static_cast<char>(0xf0 | (code >> 18));
      tail(12), tail(6), tail(0);
    }
  }

  Tree number() {
    const std::size_t start = at_;
    while (at_ < text_.size() && std::string_view("+-.0123456789eE").find(text_[at_]) != std::string_view::npos) ++at_;
    const std::string_view token = text_.substr(start, at_ - start);
    at_ = start;
    if (token.empty()) fail("expected a value, found " + detail::shown(text_.substr(at_, 1)));
    if (!is_json_number(token)) fail("not a number: " + detail::shown(token));
    Tree out;
    if (token.find_first_of(".eE") == token.npos) {
      std::int64_t whole = 0;
      if (std::from_chars(token.data(), token.data() + token.size(), whole).ec == std::errc())
        out = whole;
      else
        out = token;
      if (token == "-0") out = -0.0;
    } else {
      double value = 0;
      if (!detail::parse_float(token, value)) fail("outside the range of a 64-bit float: " + detail::shown(token));
      out = value;
    }
    at_ = start + token.size();
    return out;
  }

  // -? ( 0 | [1-9][0-9]* ) ( . [0-9]+ )? ( [eE] [-+]? [0-9]+ )?
  static bool is_json_number(std::string_view token) {
    auto digits = [&] {
      const std::size_t count = std::min(token.find_first_not_of("0123456789"), token.size());
      token.remove_prefix(count);
      return count;
    };
    if (token.starts_with('-')) token.remove_prefix(1);
    const bool zero = token.starts_with('0');
    const std::size_t whole = digits();
    if (whole == 0 || (zero && whole > 1)) return false;
    if (token.starts_with('.')) {
      token.remove_prefix(1);
      if (digits() == 0) return false;
    }
    if (token.starts_with('e') || token.starts_with('E')) {
      token.remove_prefix(1);
      if (token.starts_with('+') || token.starts_with('-')) token.remove_prefix(1);
      if (digits() == 0) return false;
    }
    return token.empty();
  }

  std::string_view text_;
  const std::string& source_;
  const ReadLimits& limits_;
  TreeLines* lines_;
  std::size_t at_ = 0;
  std::size_t nodes_ = 0;
  int line_ = 1;
};

class JsonWriter {
 public:
  explicit JsonWriter(bool pretty) : pretty_(pretty) {}
  std::string take() { return std::move(out_); }

  void write(const Tree& tree, int depth) {
    if (depth > detail::kDeepestWrite)
      throw ConfigError("nested deeper than " + std::to_string(detail::kDeepestWrite) +
                        " levels, so it cannot be written");
    if (tree.is_null())
      out_ += "null";
    else if (tree.is_bool())
      out_ += tree.as_bool() ? "true" : "false";
    else if (tree.is_int())
      out_ += std::to_string(tree.as_int());
    else if (tree.is_double())
      write_float(tree.as_double());
    else if (tree.is_string())
      out_ += detail::quoted(tree.as_string());
    else if (tree.is_list())
      write_list(tree.as_list(), depth);
    else
      write_map(tree.as_map(), depth);
  }

 private:
  void write_float(double value) {
    if (std::isnan(value))
      out_ += "NaN";
    else if (std::isinf(value))
      out_ += value < 0 ? "-Infinity" : "Infinity";
    else
      out_ += detail::float_text(value);
  }
  void write_list(const Tree::List& list, int depth) {
    out_ += '[';
    for (std::size_t i = 0; i < list.size(); ++i) {
      separate(i == 0, depth + 1);
      write(list[i], depth + 1);
    }
    close(list.empty(), depth, ']');
  }
  void write_map(const Tree::Map& map, int depth) {
    out_ += '{';
    bool first = true;
    for (const auto& [key, item] : map) {
      separate(std::exchange(first, false), depth + 1);
      out_ += detail::quoted(key);
      out_ += pretty_ ? ": " : ":";
      write(item, depth + 1);
    }
    close(map.empty(), depth, '}');
  }
  void separate(bool first, int depth) {
    if (!first) out_ += ',';
    if (pretty_) out_.append("\n").append(2 * depth, ' ');
  }
  void close(bool empty, int depth, char bracket) {
    if (pretty_ && !empty) out_.append("\n").append(2 * depth, ' ');
    out_ += bracket;
  }

  bool pretty_;
  std::string out_;
};

}  // namespace

Tree read_json(std::string_view text, const std::string& source, const ReadLimits& limits, TreeLines* lines) {
  return JsonReader(text, source, limits, lines).read();
}

std::string write_json(const Tree& tree, bool pretty) {
  JsonWriter writer(pretty);
  writer.write(tree, 0);
  std::string text = writer.take();
  if (pretty) text += '\n';
  return text;
}

}  // namespace fabric
