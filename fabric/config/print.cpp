#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "fabric/config/resolver_internal.h"
#include "fabric/config/scalar_internal.h"

namespace fabric {

std::string ConfigChange::to_string() const { return path + ": " + write_json(before) + " -> " + write_json(after); }

namespace detail {
namespace {

constexpr std::size_t kCommentColumn = 48;

std::string origin_of(const Origins& origins, std::string path) {
  if (auto found = origins.find(path + ".name"); found != origins.end() && !origins.contains(path))
    return found->second;
  for (;;) {
    if (auto found = origins.find(path); found != origins.end()) return found->second;
    const std::size_t dot = path.rfind('.');
    if (dot == path.npos) return "default";
    path.resize(dot);
  }
}

// Characters, not bytes, so that comments line up.
std::size_t width_of(std::string_view text) {
  std::size_t width = 0;
  for (char c : text) width += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return width;
}

void print_entry(const std::string& key, const Tree& value, const std::string& path, const Origins& origins, int indent,
                 std::string& out) {
  const std::string spaces(static_cast<std::size_t>(indent), ' ');
  std::string text = write_yaml(Tree::Map{{key, value}});
  if (value.is_map() && !value.as_map().empty()) {
    out += spaces + write_yaml(Tree::Map{{key, Tree::Map()}});
    // "key: {}\n" without the braces.
    out.replace(out.size() - 4, 4, "\n");
    for (const auto& [name, item] : value.as_map())
      print_entry(name, item, below(path, name), origins, indent + 2, out);
    return;
  }
  bool first = true;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = text.find('\n', start);
    std::string line = spaces + text.substr(start, end - start);
    if (std::exchange(first, false)) {
      const std::size_t width = width_of(line);
      line +=
          std::string(width + 1 < kCommentColumn ? kCommentColumn - width : 1, ' ') + "# " + origin_of(origins, path);
    }
    out += line + "\n";
    start = end + 1;
  }
}

}  // namespace

std::string print_with_origins(const Tree& values, const Origins& origins) {
  std::string out;
  for (const auto& [key, value] : values.as_map()) print_entry(key, value, key, origins, 0, out);
  return out;
}

void print_and_exit(const std::string& output) {
  std::fwrite(output.data(), 1, output.size(), stdout);
  std::exit(std::fflush(stdout) == 0 ? 0 : 1);
}

}  // namespace detail
}  // namespace fabric
