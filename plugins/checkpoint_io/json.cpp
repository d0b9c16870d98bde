#include "plugins/checkpoint_io/json.h"

#include <charconv>
#include <cmath>
#include <unordered_set>
#include <vector>

#include <nlohmann/json.hpp>

namespace fabric::checkpoint {
namespace {

class Builder {
 public:
  using json = nlohmann::json;
  explicit Builder(const std::string& what) : what_(what) {}

  bool null() { return put({}); }
  bool boolean(bool value) { return put(value); }
  bool number_integer(json::number_integer_t value) { return put(value); }
  bool number_unsigned(json::number_unsigned_t value) {
    if (value > static_cast<std::uint64_t>(INT64_MAX)) fail("the integer " + std::to_string(value) + " is too large");
    return put(static_cast<std::int64_t>(value));
  }
  bool number_float(json::number_float_t value, const std::string&) { return put(value); }
  bool string(std::string& value) { return put(std::move(value)); }
  bool binary(json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(Tree::Map{}); }
  bool start_array(std::size_t) { return open(Tree::List{}); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    if (!open_.back().names.insert(name).second) fail("the name '" + name + "' appears twice");
    open_.back().key = std::move(name);
    return true;
  }
  template <class Exception>
  [[noreturn]] bool parse_error(std::size_t position, const std::string&, const Exception& error) {
    fail("not valid JSON at byte " + std::to_string(position) + " (" + error.what() + ")");
  }

  Tree take() { return std::move(root_); }

 private:
  struct Level {
    Tree tree;
    std::string key;
    std::unordered_set<std::string> names;
  };

  [[noreturn]] void fail(const std::string& why) const { throw CheckpointCorrupt(what_ + ": " + why); }
  bool put(Tree value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().tree.is_list()) {
      open_.back().tree.as_list().push_back(std::move(value));
    } else {
      open_.back().tree.as_map().append(std::move(open_.back().key), std::move(value));
    }
    return true;
  }
  bool open(Tree empty) {
    if (open_.size() >= kMaxDepth + 8) fail("nested deeper than " + std::to_string(kMaxDepth + 8) + " levels");
    open_.push_back({std::move(empty), {}, {}});
    return true;
  }
  bool close() {
    Tree done = std::move(open_.back().tree);
    open_.pop_back();
    return put(std::move(done));
  }

  const std::string& what_;
  Tree root_;
  std::vector<Level> open_;
};

void write_string(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

void write_double(std::string& out, double value) {
  if (!std::isfinite(value)) throw MisuseError("JSON cannot hold the number " + std::to_string(value));
  char digits[40];
  auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  std::string_view text(digits, static_cast<std::size_t>(end - digits));
  out += text;
  if (text.find_first_of(".e") == text.npos) out += ".0";
}

void write(std::string& out, const Tree& tree) {
  const char* separator = "";
  if (tree.is_null()) {
    out += "null";
  } else if (tree.is_bool()) {
    out += tree.as_bool() ? "true" : "false";
  } else if (tree.is_int()) {
    out += std::to_string(tree.as_int());
  } else if (tree.is_double()) {
    write_double(out, tree.as_double());
  } else if (tree.is_string()) {
    write_string(out, tree.as_string());
  } else if (tree.is_list()) {
    out += '[';
    for (const auto& item : tree.as_list()) {
      out += std::exchange(separator, ",");
      write(out, item);
    }
    out += ']';
  } else {
    out += '{';
    for (const auto& [key, item] : tree.as_map()) {
      out += std::exchange(separator, ",");
      write_string(out, key);
      out += ':';
      write(out, item);
    }
    out += '}';
  }
}

}  // namespace

Tree read_untrusted_json(std::string_view text, const std::string& what) {
  Builder builder(what);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder))
    throw CheckpointCorrupt(what + ": not valid JSON");
  return builder.take();
}

std::string write_compact_json(const Tree& tree) {
  std::string out;
  write(out, tree);
  return out;
}

bool is_utf8(std::string_view text) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    unsigned char lead = byte(i);
    std::size_t length = lead < 0x80 ? 1 : lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3
                       : lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (std::size_t k = 1; k < length; ++k)
      if ((byte(i + k) & 0xC0) != 0x80) return false;
    if (lead == 0xE0 && byte(i + 1) < 0xA0) return false;  // overlong
    if (lead == 0xED && byte(i + 1) > 0x9F) return false;  // surrogate
    if (lead == 0xF0 && byte(i + 1) < 0x90) return false;  // overlong
    if (lead == 0xF4 && byte(i + 1) > 0x8F) return false;  // beyond U+10FFFF
    i += length;
  }
  return true;
}

}  // namespace fabric::checkpoint
