#include <algorithm>
#include <cctype>
#include <cmath>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "fabric/config/scalar_internal.h"

namespace fabric {
namespace {

// YAML's own limit for a key written as `key: value`.
constexpr std::size_t kLongestKey = 1000;
constexpr std::size_t kLongestLine = 100;

// Words that YAML 1.1 readers, PyYAML among them, take for bools.
bool is_old_bool(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text == "yes" || text == "no" || text == "on" || text == "off" || text == "y" || text == "n";
}

std::string string_text(const std::string& text) {
  auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '/'; };
  auto is_safe = [&](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+'; };
  const bool plain = !text.empty() && is_letter(text[0]) && std::all_of(text.begin(), text.end(), is_safe) &&
                     detail::resolve_plain(text).is_string() && !is_old_bool(text);
  return plain ? text : detail::quoted(text);
}

std::string scalar_text(const Tree& tree) {
  if (tree.is_null()) return "null";
  if (tree.is_bool()) return tree.as_bool() ? "true" : "false";
  if (tree.is_int()) return std::to_string(tree.as_int());
  if (tree.is_string()) return string_text(tree.as_string());
  const double value = tree.as_double();
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value < 0 ? "-.inf" : ".inf";
  return detail::float_text(value);
}

bool is_scalar(const Tree& tree) { return !tree.is_list() && !tree.is_map(); }

// What fits behind "key: " or "- " on the same line: scalars, empty collections, short lists of scalars.
std::string on_one_line(const Tree& tree) {
  if (is_scalar(tree)) return scalar_text(tree);
  if (tree.is_map()) return tree.as_map().empty() ? "{}" : "";
  std::string out = "[";
  for (const Tree& item : tree.as_list()) {
    if (!is_scalar(item)) return "";
    if (out.size() > 1) out += ", ";
    out += scalar_text(item);
    if (out.size() > kLongestLine) return "";
  }
  return out + "]";
}

class YamlWriter {
 public:
  std::string take() { return std::move(out_); }

  // Writes a collection whose first line begins where `out_` ends, already indented.
  void write_block(const Tree& tree, int indent, int depth) {
    if (depth >= detail::kDeepestWrite)
      throw ConfigError("nested deeper than " + std::to_string(detail::kDeepestWrite) +
                        " levels, so it cannot be written");
    bool first = true;
    auto begin_line = [&] {
      if (!std::exchange(first, false)) out_.append(indent, ' ');
    };
    if (tree.is_map()) {
      for (const auto& [key, item] : tree.as_map()) {
        begin_line();
        write_entry(string_text(key), item, indent, depth);
      }
      return;
    }
    for (const Tree& item : tree.as_list()) {
      begin_line();
      out_ += "- ";
      write_item(item, indent + 2, depth);
    }
  }

 private:
  void write_item(const Tree& item, int indent, int depth) {
    if (std::string line = on_one_line(item); !line.empty())
      out_ += line + "\n";
    else
      write_block(item, indent, depth + 1);
  }
  void write_entry(const std::string& key, const Tree& item, int indent, int depth) {
    if (key.size() > kLongestKey) {
      out_.append("? ").append(key).append("\n").append(indent, ' ').append(": ");
      return write_item(item, indent + 2, depth);
    }
    out_ += key + ":";
    if (std::string line = on_one_line(item); !line.empty()) {
      out_ += " " + line + "\n";
    } else {
      out_.append("\n").append(indent + 2, ' ');
      write_block(item, indent + 2, depth + 1);
    }
  }

  std::string out_;
};

}  // namespace

std::string write_yaml(const Tree& tree) {
  if (std::string line = on_one_line(tree); !line.empty()) return line + "\n";
  YamlWriter writer;
  writer.write_block(tree, 0, 0);
  return writer.take();
}

}  // namespace fabric
