#pragma once

#include <string>
#include <string_view>

#include <fabric/tree.h>

namespace fabric::checkpoint {

/// Deepest nesting that checkpoints may have, on the way out and on the way in.
inline constexpr int kMaxDepth = 200;

/// Strict reading for bytes that nobody vouches for: repeated keys, integers beyond 64 bits, invalid UTF-8 and nesting
/// deeper than kMaxDepth + 8 throw CheckpointCorrupt saying where, after `what`.
Tree read_untrusted_json(std::string_view text, const std::string& what);
/// One line. Floats keep every bit and never look like integers; they must be finite, and strings valid UTF-8.
std::string write_compact_json(const Tree& tree);
bool is_utf8(std::string_view text);

}  // namespace fabric::checkpoint
