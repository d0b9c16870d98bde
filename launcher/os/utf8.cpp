#include "launcher/os/utf8.h"

#include <algorithm>

#include <fabric/base/tree_io.h>

namespace fabric {
namespace {

bool is_ascii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char letter) { return static_cast<unsigned char>(letter) < 128; });
}

}  // namespace

void make_utf8(Tree& tree) {
  if (tree.is_map())
    for (auto& [name, value] : tree.as_map()) make_utf8(value);
  if (tree.is_list())
    for (auto& value : tree.as_list()) make_utf8(value);
  if (!tree.is_string() || is_ascii(tree.as_string())) return;
  try {
    write_json(tree);
  } catch (const Error&) {
    for (auto& letter : tree.as<std::string>())
      if (static_cast<unsigned char>(letter) >= 128) letter = '?';
  }
}

}  // namespace fabric
