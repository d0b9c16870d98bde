#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

#include <fabric/base/tree.h>
#include <fabric/export.h>

namespace fabric {

/// What a text may cost at most; more is a ConfigError.
struct ReadLimits {
  std::size_t bytes = std::size_t{128} << 20;
  int depth = 64;
  /// Scalars, lists and maps together, after YAML aliases were expanded.
  std::size_t nodes = std::size_t{8} << 20;
};

/// Dotted path of an entry ("optimizer.lr", "xs.0") to its line.
using TreeLines = std::map<std::string, int, std::less<>>;

/// Reads one JSON value. Beyond the standard, NaN, Infinity and -Infinity are read (as Python's json module does).
/// Integers that do not fit 64 signed bits become strings of their digits, which unsigned fields accept.
/// Throws ConfigError "SOURCE:LINE: …" for text that is not JSON or not UTF-8, for a key given twice, a number outside
/// a double's range, and for more than `limits` allow. `lines`, when given, receives the line of every entry.
FABRIC_API Tree read_json(std::string_view text, const std::string& source = "JSON", const ReadLimits& limits = {},
                          TreeLines* lines = nullptr);
/// JSON that read_json turns into an equal tree: floats with the fewest digits that give the same bits and always with
/// a point, so that they stay floats; NaN, Infinity and -Infinity bare, as Python writes them. One line, or indented by
/// two spaces when `pretty`. Throws ConfigError for a string that is not UTF-8 and beyond 64 levels.
FABRIC_API std::string write_json(const Tree& tree, bool pretty = false);

/// Reads one YAML document (1.2 core schema: true and false, null and ~, integers also 0x and 0o, .inf and .nan; yes,
/// no, on and off are strings). Null for an empty text. Throws ConfigError "SOURCE:LINE: …" for bad syntax, a second
/// document, a key given twice, tags other than the core ones, merge keys, and for more than `limits` or 16 MiB allow.
FABRIC_API Tree read_yaml(std::string_view text, const std::string& source = "YAML", const ReadLimits& limits = {},
                          TreeLines* lines = nullptr);
/// YAML that read_yaml turns into an equal tree; strings that would read as something else are quoted.
FABRIC_API std::string write_yaml(const Tree& tree);

/// Reads a file by the ending of its name: .yaml, .yml or .json.
FABRIC_API Tree read_tree_file(const std::string& path, const ReadLimits& limits = {}, TreeLines* lines = nullptr);

}  // namespace fabric
