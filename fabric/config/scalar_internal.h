#pragma once

#include <string>
#include <string_view>

#include <fabric/config/schema.h>

namespace fabric::detail {

/// Fewest digits that give the same double, always with a point. Finite numbers only.
std::string float_text(double value);
/// Finite decimal number in the grammar of JSON and YAML. False for other text and for what a double cannot hold.
bool parse_float(std::string_view text, double& value);
/// What a plain YAML scalar means: null, a bool, a number or a string.
Tree resolve_plain(std::string_view text);
/// Where the first byte that is not UTF-8 is; npos when all is well.
std::size_t find_invalid_utf8(std::string_view text);
/// `text` in double quotes, with escapes that JSON and YAML share. Throws ConfigError when it is not UTF-8.
std::string quoted(std::string_view text);
/// `text` shortened and made printable, for error messages.
std::string shown(std::string_view text);
/// 1 for the first line.
int line_of(std::string_view text, std::size_t offset);

constexpr int kDeepestWrite = 64;

}  // namespace fabric::detail
